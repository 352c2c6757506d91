//! A customer whose money the test looks after.

use serde_json::{Value, json};

use super::{Client, Host, eventually};

/// A customer with a limit, and what the operator sees of it.
#[derive(Clone, Debug)]
pub struct Purse {
    /// The customer's own key.
    pub customer: Client,
    admin: Client,
    /// The customer's number.
    pub id: i64,
}

impl Purse {
    /// A new customer that can spend nothing but what it has paid: this, in
    /// nano-dollars.
    pub async fn prepaid(host: &Host, paid: i64) -> Self {
        let this = Self::postpaid(host).await;
        let limit = json!({ "credit_limit": 0 });
        this.admin.patch(&this.path(""), limit).await.expect(200);
        if paid > 0 {
            let credit = json!({ "amount": text(paid), "reference": format!("first-{}", this.id) });
            this.admin
                .post(&this.path("/credit"), credit)
                .await
                .expect(201);
        }
        this
    }

    /// A new customer without a limit.
    pub async fn postpaid(host: &Host) -> Self {
        let customer = host.customer().await;
        let keys = customer.get("/api/keys").await.expect(200);
        Self {
            customer,
            admin: host.admin(),
            id: keys["keys"][0]["customer_id"].as_i64().expect("a number"),
        }
    }

    /// The same at a server that was started again.
    pub fn at(&self, host: &Host) -> Self {
        Self {
            customer: self.customer.at(host.url()),
            admin: host.admin(),
            id: self.id,
        }
    }

    /// A path of the customer's.
    pub fn path(&self, end: &str) -> String {
        format!("/customers/{}{end}", self.id)
    }

    /// Balance and what is held of it, in nano-dollars.
    pub async fn balance(&self) -> (i64, i64) {
        let customer = self.customer.get(&self.path("")).await.expect(200);
        (nanos(&customer["balance"]), nanos(&customer["held"]))
    }

    /// Waits until nothing is held, and returns the balance.
    pub async fn settled(&self) -> i64 {
        eventually("nothing is held", async || self.balance().await.1 == 0).await;
        self.balance().await.0
    }

    /// Asks so often at once; returns the answers, and the codes of the refusals.
    pub async fn ask_at_once(&self, times: usize, body: &Value) -> (Vec<Value>, Vec<String>) {
        let all: Vec<_> = (0..times)
            .map(|_| {
                let (customer, body) = (self.customer.clone(), body.clone());
                tokio::spawn(async move { customer.post("/generate", body).await })
            })
            .collect();
        let (mut answers, mut refusals) = (Vec::new(), Vec::new());
        for reply in all {
            let reply = reply.await.expect("no panic");
            if reply.status == 200 {
                answers.push(reply.body);
            } else {
                refusals.push(reply.expect_error(402));
            }
        }
        (answers, refusals)
    }
}

/// Dollars of an answer as nano-dollars.
pub fn nanos(dollars: &Value) -> i64 {
    (dollars.as_f64().expect("dollars") * 1e9).round() as i64
}

/// Nano-dollars as the text of dollars.
pub fn text(nanos: i64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}
