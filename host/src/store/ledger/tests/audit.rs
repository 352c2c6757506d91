//! That the audit finds what is not as kept.

use sqlx::AssertSqlSafe;

use super::{Ledger, NOW, Open, owner};
use crate::money::NanoDollars;
use crate::store::db::query;
use crate::store::ledger::Period;
use crate::store::ledger::audit::Problem;
use crate::store::millis;

#[tokio::test]
async fn a_sum_that_is_not_as_kept_is_found() {
    let ledger = Ledger::new(None).await;
    let open = Open {
        id: "one".into(),
        owner: owner(0),
        held: None,
        at: NOW,
    };
    ledger.budgets(owner(0), &[(Period::Day, 40)]).await;
    ledger.settle(&open, 30).await;
    ledger.check().await;
    let one = || Problem::Usage {
        request_id: "one".into(),
    };
    let sum = |start| Problem::Sum {
        customer_id: 1,
        start,
    };
    let (hour, total) = (sum(millis(NOW)), sum(0));
    let budget = Problem::Budget {
        budget: 1,
        start: millis(Period::Day.start(NOW)),
    };
    let held = Problem::Held {
        account: 3,
        kept: NanoDollars(1),
        summed: NanoDollars(0),
    };
    for (table, column, right, wrong, problem) in [
        (
            "accounts",
            "posted",
            "30",
            "31",
            Problem::Unbalanced(NanoDollars(1)),
        ),
        ("accounts", "held", "0", "1", held),
        ("transfers", "amount", "30", "31", one()),
        ("transfers", "reason", "'usage'", "'correction'", one()),
        ("transfers", "reference", "'one'", "'two'", one()),
        ("usage", "cost", "30", "29", one()),
        ("usage", "customer_id", "1", "2", one()),
        ("usage", "prompt_tokens", "1", "2", hour.clone()),
        ("usage_sums", "requests", "1", "2", hour),
        ("usage_sums", "period", "'total'", "'hour'", total),
        ("spending", "held", "0", "7", budget.clone()),
        ("spending", "spent", "30", "31", budget),
    ] {
        let of = match (table, column) {
            ("accounts", "posted") => "WHERE name = 'revenue'",
            ("accounts", _) => "WHERE customer_id = 1",
            ("usage_sums", "period") => "WHERE start = 0",
            ("usage_sums", _) => "WHERE period = 'hour'",
            _ => "",
        };
        let set = |value| format!("UPDATE {table} SET {column} = {value} {of}");
        change(&ledger, set(wrong)).await;
        let audit = ledger.store.audit(NOW).await.expect("an audit");
        assert!(
            audit.problems.contains(&problem),
            "{table}: {:?}",
            audit.problems
        );
        change(&ledger, set(right)).await;
        ledger.check().await;
    }
}

async fn change(ledger: &Ledger, sql: String) {
    let done = query(AssertSqlSafe(sql)).execute(&ledger.store.write).await;
    done.expect("changed");
}
