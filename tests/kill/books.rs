//! What clients have in hand, and what the server has on record of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::harness::{Host, Purse, nanos};

/// Rows of a page of the server's records.
const PAGE: usize = 1000;

/// Answers that came whole, and are not yet found on record: the request's id and
/// what it said it cost, in nano-dollars.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<HashMap<String, i64>>>);

impl Answers {
    /// Notes an answer.
    pub fn note(&self, id: String, cost: i64) {
        self.0.lock().expect("no panic").insert(id, cost);
    }

    fn take(&self) -> HashMap<String, i64> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

/// The server's records as far as they were read.
#[derive(Debug, Default)]
pub struct Books {
    /// The cost of each request, by its id.
    costs: HashMap<String, i64>,
    /// The last row that was read: none comes before it any more.
    after: i64,
    /// Answers that were found on record.
    pub answered: usize,
    /// Names under which something was asked until it was answered.
    pub named: usize,
    /// Requests that came to an answer, by customer.
    ended_well: HashMap<i64, usize>,
}

impl Books {
    /// What is wrong, when nobody asks for anything, and one customer has asked under
    /// names alone.
    pub async fn problem(
        &mut self,
        host: &Host,
        answers: &Answers,
        of_names: &Purse,
    ) -> Option<String> {
        let mut answers = answers.take();
        loop {
            let path = format!("/usage/requests?after={}&limit={PAGE}", self.after);
            let page = host.admin().get(&path).await.expect(200);
            let page = page["requests"].as_array().expect("a list");
            for row in page {
                self.after = row["id"].as_i64().expect("an integer");
                let id = row["request_id"].as_str().expect("text").to_owned();
                let answer = answers.remove(&id);
                self.answered += usize::from(answer.is_some());
                let cost = nanos(&row["cost"]);
                let is_ok = row["status"] == "ok";
                let customer = row["customer_id"].as_i64().expect("an integer");
                *self.ended_well.entry(customer).or_default() += usize::from(is_ok);
                if answer.is_some_and(|said| !is_ok || said != cost) {
                    return Some(format!("{id} is not on record as it was answered: {row}"));
                }
                if self.costs.insert(id, cost).is_some() {
                    return Some(format!("on record twice: {row}"));
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        if let Some((id, cost)) = answers.into_iter().next() {
            return Some(format!("{id} cost {cost}, and is not on record"));
        }
        let ended_well = self.ended_well.get(&of_names.id).copied();
        if ended_well.unwrap_or_default() != self.named {
            return Some(format!(
                "{ended_well:?} requests under {} names came to an answer",
                self.named
            ));
        }
        let totals = host.admin().get("/usage").await.expect(200)["totals"].clone();
        if totals["requests"] != self.costs.len() || nanos(&totals["cost"]) != self.spent() {
            return Some(format!(
                "{totals} is not the sum of {} rows",
                self.costs.len()
            ));
        }
        // one that starts again after a crash may not take everybody at once
        for _ in 0..10 {
            let (status, said) = host.try_run(&["db", "audit"]);
            if !said.contains("cannot open the database") {
                return (!status.success()).then_some(said);
            }
        }
        Some("the database does not open any more".to_owned())
    }

    /// What is wrong with the money of the customers that asked for all of it, of
    /// which each has paid this, and of which nothing may be held any more.
    pub async fn unpaid(&self, purses: &[Purse; 2], paid: i64) -> Option<String> {
        let left = purses[0].settled().await + purses[1].settled().await;
        let (paid, spent) = (2 * paid, self.spent());
        (left != paid - spent)
            .then(|| format!("{left} of {paid} is left, of which {spent} was spent"))
    }

    /// How much was answered.
    pub fn so_far(&self) -> String {
        format!("{} answers so far, {} names", self.answered, self.named)
    }

    /// Nano-dollars.
    fn spent(&self) -> i64 {
        self.costs.values().sum()
    }
}
