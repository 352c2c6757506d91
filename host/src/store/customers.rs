//! Customers: who owns keys and pays.

use serde_json::{Value, json};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::audit::{self, Act, Actor, Object};
use super::{Error, Outbox, Store, from_millis, keys, millis, outbox};

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
    /// When it was created.
    pub created_at: OffsetDateTime,
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
}

fn customer(row: &SqliteRow) -> Result<Customer, Error> {
    Ok(Customer {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        email: row.try_get("email")?,
        company: row.try_get("company")?,
        created_at: from_millis(row.try_get("created_at")?),
    })
}

/// What the audit log keeps of a customer.
fn on_record(customer: &Customer) -> Value {
    json!({ "name": customer.name, "email": customer.email, "company": customer.company })
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
        let id = sqlx::query(
            "INSERT INTO customers (name, email, company, created_at) VALUES ($1, $2, $3, $4)",
        )
        .bind(&new.name)
        .bind(&new.email)
        .bind(&new.company)
        .bind(millis(now))
        .execute(&mut *transaction)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Error::EmailTaken,
            _ => error.into(),
        })?
        .last_insert_rowid();
        if let Outbox::On(_) = self.outbox {
            outbox::announce_customer(&mut transaction, id, now).await?;
        }
        let NewCustomer {
            name,
            email,
            company,
        } = new;
        let customer = Customer {
            id,
            name,
            email,
            company,
            created_at: now,
        };
        let act = Act {
            action: "customer.created",
            object: Object::Customer(id),
            before: None,
            after: Some(on_record(&customer)),
        };
        audit::record(&mut transaction, by, act, now).await?;
        transaction.commit().await?;
        self.outbox.wake();
        Ok(customer)
    }

    /// The customer with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn customer(&self, id: i64) -> Result<Customer, Error> {
        let sql = "SELECT id, name, email, company, created_at FROM customers \
             WHERE id = $1 AND deleted_at IS NULL";
        customer(&sqlx::query(sql).bind(id).fetch_one(&self.read).await?)
    }

    /// The customer with this address, in any case.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn customer_by_email(&self, email: &str) -> Result<Customer, Error> {
        let sql = "SELECT id, name, email, company, created_at FROM customers \
             WHERE lower(email) = lower($1) AND deleted_at IS NULL";
        customer(&sqlx::query(sql).bind(email).fetch_one(&self.read).await?)
    }

    /// At most `limit` customers with numbers above `after`, in order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn customers(&self, after: i64, limit: u32) -> Result<Vec<Customer>, Error> {
        let sql = "SELECT id, name, email, company, created_at FROM customers \
             WHERE id > $1 AND deleted_at IS NULL ORDER BY id LIMIT $2";
        let rows = sqlx::query(sql)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(customer).collect()
    }

    /// Deletes a customer and its keys; its usage stays on record.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn delete_customer(
        &self,
        id: i64,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let mut transaction = self.write.begin().await?;
        let row = sqlx::query(
            "UPDATE customers SET deleted_at = $1 WHERE id = $2 AND deleted_at IS NULL RETURNING *",
        )
        .bind(millis(now))
        .bind(id)
        .fetch_one(&mut *transaction)
        .await?;
        let act = Act {
            action: "customer.deleted",
            object: Object::Customer(id),
            before: Some(on_record(&customer(&row)?)),
            after: None,
        };
        audit::record(&mut transaction, by, act, now).await?;
        keys::delete_all(&mut transaction, id, by, now).await?;
        transaction.commit().await?;
        self.keys_changed();
        Ok(())
    }
}
