//! Customers: who owns keys and pays.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::audit::{self, Act, Actor, Object};
use super::db::{Row, query};
use super::servers::{self, Change};
use super::{Error, Store, from_millis, keys, ledger, millis, outbox};
use crate::money::NanoDollars;

/// A customer.
#[derive(Clone, Debug)]
pub struct Customer {
    /// Its number.
    pub id: i64,
    /// Name of the person or team.
    pub name: String,
    /// Address, unique among customers.
    pub email: String,
    /// Company.
    pub company: String,
    /// What it has paid less what it used.
    pub balance: NanoDollars,
    /// What its requests at work may yet cost.
    pub held: NanoDollars,
    /// How far below 0 requests may take the balance; without one, as far as they
    /// like.
    pub credit_limit: Option<NanoDollars>,
    /// Whether, of what its balance and limit came to when they last changed, little
    /// is left.
    pub is_near: bool,
    /// Limits of all its keys together.
    pub limits: CustomerLimits,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it was deleted, if it was.
    pub deleted_at: Option<OffsetDateTime>,
}

/// Limits of all keys of a customer together, at all models; without one, as
/// configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CustomerLimits {
    /// Requests a minute.
    pub requests: Option<u32>,
    /// Tokens of prompts and answers a minute.
    pub tokens: Option<u32>,
    /// Requests at work at once.
    pub concurrent: Option<u32>,
}

/// A customer to create.
#[derive(Clone, Debug)]
pub struct NewCustomer {
    /// Name of the person or team.
    pub name: String,
    /// Address, unique among customers.
    pub email: String,
    /// Company.
    pub company: String,
    /// How far below 0 requests may take the balance.
    pub credit_limit: Option<NanoDollars>,
    /// Limits of all its keys together.
    pub limits: CustomerLimits,
}

/// What to change of a customer; what is absent stays.
#[derive(Clone, Debug, Default)]
pub struct CustomerChange {
    /// New name.
    pub name: Option<String>,
    /// New company.
    pub company: Option<String>,
    /// New credit limit, or that there is none.
    pub credit_limit: Option<Option<NanoDollars>>,
    /// New limit of requests a minute, or that it is as configured.
    pub rate_limit: Option<Option<u32>>,
    /// The same of tokens a minute.
    pub token_limit: Option<Option<u32>>,
    /// The same of requests at work at once.
    pub concurrent_limit: Option<Option<u32>>,
}

/// Of a row that was read after this was held.
fn customer_with(held: &ledger::Held, row: &Row) -> Result<Customer, Error> {
    let mut customer = customer(row)?;
    customer.held.0 += held.of(customer.id).0;
    Ok(customer)
}

fn customer(row: &Row) -> Result<Customer, Error> {
    let (posted, near_at): (i64, Option<i64>) = (row.try_get("posted")?, row.try_get("near_at")?);
    Ok(Customer {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        email: row.try_get("email")?,
        company: row.try_get("company")?,
        balance: NanoDollars(posted),
        held: NanoDollars(row.try_get("held")?),
        credit_limit: row.try_get::<Option<i64>>("credit_limit")?.map(NanoDollars),
        is_near: near_at.is_some_and(|near_at| posted <= near_at),
        limits: CustomerLimits {
            requests: row.try_get("rate_limit")?,
            tokens: row.try_get("token_limit")?,
            concurrent: row.try_get("concurrent_limit")?,
        },
        created_at: from_millis(row.try_get("created_at")?),
        deleted_at: row.try_get::<Option<i64>>("deleted_at")?.map(from_millis),
    })
}

/// The query for customers with their accounts, of whom this is true.
macro_rules! customers {
    ($condition:literal) => {
        concat!(
            "SELECT customers.*, posted, held, credit_limit, near_at FROM customers \
             JOIN accounts ON customer_id = customers.id WHERE ",
            $condition
        )
    };
}

const BY_ID: &str = customers!("customers.id = $1 AND deleted_at IS NULL");

/// What the audit log keeps of a customer.
fn on_record(customer: &Customer) -> Value {
    json!({
        "name": customer.name,
        "email": customer.email,
        "company": customer.company,
        "credit_limit": customer.credit_limit,
        "rate_limit": customer.limits.requests,
        "token_limit": customer.limits.tokens,
        "concurrent_limit": customer.limits.concurrent,
    })
}

impl Store {
    /// Creates a customer.
    ///
    /// # Errors
    /// [`Error::EmailTaken`] when another customer has the address.
    pub async fn create_customer(
        &self,
        new: NewCustomer,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Customer, Error> {
        let mut transaction = self.write.begin().await?;
        let id: i64 = query(
            "INSERT INTO customers (name, email, company, created_at, rate_limit, token_limit, \
             concurrent_limit) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
        )
        .bind(&new.name)
        .bind(&new.email)
        .bind(&new.company)
        .bind(millis(now))
        .bind(new.limits.requests)
        .bind(new.limits.tokens)
        .bind(new.limits.concurrent)
        .fetch_one(&mut transaction)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Error::EmailTaken,
            _ => error.into(),
        })?
        .try_get("id")?;
        query("INSERT INTO accounts (customer_id, credit_limit) VALUES ($1, $2)")
            .bind(id)
            .bind(new.credit_limit.map(|limit| limit.0))
            .execute(&mut transaction)
            .await?;
        ledger::renew_near(&mut transaction, id).await?;
        if self.outbox.is_on() {
            outbox::announce_customer(&mut transaction, id, now).await?;
        }
        let row = query(BY_ID).bind(id).fetch_one(&mut transaction);
        let customer = customer(&row.await?)?;
        let act = Act {
            action: "customer.created",
            object: Object::Customer(id),
            before: None,
            after: Some(on_record(&customer)),
        };
        audit::record(&mut transaction, by, act, now).await?;
        if customer.credit_limit.is_some() {
            self.limited.insert(id);
            servers::tell(&mut transaction, Change::Limits(id)).await?;
        }
        transaction.commit().await?;
        self.outbox.wake();
        Ok(customer)
    }

    /// The customer with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn customer(&self, id: i64) -> Result<Customer, Error> {
        let held = self.books.lock().held();
        let row = query(BY_ID).bind(id).fetch_one(self.up_to_date().await?);
        customer_with(&held, &row.await?)
    }

    /// The same, also of one that was deleted: what it used and owes stays on record.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there never was one.
    pub async fn customer_on_record(&self, id: i64) -> Result<Customer, Error> {
        let held = self.books.lock().held();
        let found = query(customers!("customers.id = $1")).bind(id);
        customer_with(&held, &found.fetch_one(self.up_to_date().await?).await?)
    }

    /// The customer with this address, in any case.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn customer_by_email(&self, email: &str) -> Result<Customer, Error> {
        let sql = customers!("lower(email) = lower($1) AND deleted_at IS NULL");
        let held = self.books.lock().held();
        let row = query(sql).bind(email).fetch_one(self.up_to_date().await?);
        customer_with(&held, &row.await?)
    }

    /// At most `limit` customers with numbers above `after`, in order: those that there
    /// are, or those that were deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn customers(
        &self,
        after: i64,
        limit: u32,
        are_deleted: bool,
    ) -> Result<Vec<Customer>, Error> {
        let sql = customers!(
            "customers.id > $1 AND (deleted_at IS NOT NULL) = $3 ORDER BY customers.id LIMIT $2"
        );
        let held = self.books.lock().held();
        let rows = query(sql)
            .bind(after)
            .bind(limit)
            .bind(are_deleted)
            .fetch_all(self.up_to_date().await?)
            .await?;
        let customers = rows.iter().map(|row| customer_with(&held, row));
        customers.collect()
    }

    /// The balances of all deleted customers together; nothing where none was deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn balance_of_deleted(&self) -> Result<Option<NanoDollars>, Error> {
        let row = query(
            "SELECT CAST(sum(posted) AS BIGINT) AS balance FROM accounts \
             JOIN customers ON customers.id = customer_id WHERE deleted_at IS NOT NULL",
        );
        let row = row.fetch_one(self.up_to_date().await?).await?;
        Ok(row.try_get::<Option<i64>>("balance")?.map(NanoDollars))
    }

    /// Changes a customer. A credit limit holds for requests that begin from now on.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn change_customer(
        &self,
        id: i64,
        change: CustomerChange,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Customer, Error> {
        let limited = self.limited.change(id).await;
        let mut transaction = self.begin_with_money_of(id).await?;
        let held = self.books.lock().held();
        let one = |row: Row| customer_with(&held, &row);
        let before = one(query(BY_ID).bind(id).fetch_one(&mut transaction).await?)?;
        query(
            "UPDATE customers SET name = coalesce($2, name), company = coalesce($3, company), \
             rate_limit = CASE WHEN $4 THEN $5 ELSE rate_limit END, \
             token_limit = CASE WHEN $6 THEN $7 ELSE token_limit END, \
             concurrent_limit = CASE WHEN $8 THEN $9 ELSE concurrent_limit END \
             WHERE id = $1",
        )
        .bind(id)
        .bind(change.name)
        .bind(change.company)
        .bind(change.rate_limit.is_some())
        .bind(change.rate_limit.flatten())
        .bind(change.token_limit.is_some())
        .bind(change.token_limit.flatten())
        .bind(change.concurrent_limit.is_some())
        .bind(change.concurrent_limit.flatten())
        .execute(&mut transaction)
        .await?;
        if let Some(limit) = change.credit_limit {
            query("UPDATE accounts SET credit_limit = $2 WHERE customer_id = $1")
                .bind(id)
                .bind(limit.map(|limit| limit.0))
                .execute(&mut transaction)
                .await?;
            ledger::renew_near(&mut transaction, id).await?;
        }
        let after = one(query(BY_ID).bind(id).fetch_one(&mut transaction).await?)?;
        let act = Act {
            action: "customer.changed",
            object: Object::Customer(id),
            before: Some(on_record(&before)),
            after: Some(on_record(&after)),
        };
        audit::record(&mut transaction, by, act, now).await?;
        servers::tell(&mut transaction, Change::Limits(id)).await?;
        // who keeps its keys in memory keeps its limits with them
        self.commit_keys(transaction).await?;
        limited.finish(&self.read).await;
        Ok(after)
    }

    /// Deletes a customer and its keys; its usage and its money stay on record.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn delete_customer(
        &self,
        id: i64,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let mut transaction = self.begin_with_money_of(id).await?;
        let row = query(BY_ID).bind(id).fetch_one(&mut transaction).await?;
        query("UPDATE customers SET deleted_at = $1 WHERE id = $2")
            .bind(millis(now))
            .bind(id)
            .execute(&mut transaction)
            .await?;
        let act = Act {
            action: "customer.deleted",
            object: Object::Customer(id),
            before: Some(on_record(&customer(&row)?)),
            after: None,
        };
        audit::record(&mut transaction, by, act, now).await?;
        keys::delete_all(&mut transaction, id, by, now).await?;
        self.commit_keys(transaction).await
    }
}
