//! What a commit that fails, or is said to, leaves behind.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::AssertSqlSafe;
use tokio::time::timeout;

use super::super::{Period, Reserved};
use super::{Ledger, NOW, Open, change, owner, settlement};
use crate::money::NanoDollars;
use crate::store::Error;
use crate::store::answers::KeptAnswer;
use crate::store::db::query;
use crate::store::scratch::Scratch;

#[tokio::test]
async fn what_could_not_be_settled_is_freed_by_what_can_be_written_next() {
    let mut ledger = Ledger::new(Some(100)).await;
    reserve(&mut ledger).await;
    let (fill, clear) = match ledger.store.write.is_shared() {
        true => (
            "ALTER TABLE usage ADD CONSTRAINT is_full CHECK (FALSE) NOT VALID",
            "ALTER TABLE usage DROP CONSTRAINT is_full",
        ),
        false => (
            "CREATE TRIGGER full BEFORE INSERT ON journal BEGIN SELECT raise(ABORT, 'full'); END",
            "DROP TRIGGER full",
        ),
    };
    change(&ledger, fill).await;
    let open = held("req_1", 60);
    let settled = ledger.settler.settle(settlement(&open, 60)).await;
    settled.expect_err("the disk is full");
    // other servers can be told of it only a second later
    let left = ledger.check().await.expect("a limit");
    assert!(
        left == 100 || left == 40 && ledger.store.write.is_shared(),
        "{left}"
    );
    change(&ledger, clear).await;
    let reserved = ledger.reserve(owner(0), 1, 100, NOW).await;
    let all = NanoDollars(100);
    assert_eq!(
        reserved,
        Reserved::Held {
            amount: all,
            capped_by: None
        }
    );
    assert_eq!(ledger.check().await, Some(0));
}

#[tokio::test]
async fn what_could_not_be_settled_is_freed_though_nobody_asks() {
    let Some(scratch) = Scratch::server() else {
        return;
    };
    let mut ledger = Ledger::on(scratch, Some(100)).await;
    reserve(&mut ledger).await;
    let fill = "ALTER TABLE usage ADD CONSTRAINT is_full CHECK (FALSE) NOT VALID";
    change(&ledger, fill).await;
    assert_eq!(ledger.check().await, Some(40));
    let settled = ledger.settler.settle(settlement(&held("req_1", 60), 60));
    settled.await.expect_err("the disk is full");
    change(&ledger, "ALTER TABLE usage DROP CONSTRAINT is_full").await;
    let freed = async { while ledger.check().await != Some(100) {} };
    timeout(Duration::from_secs(10), freed)
        .await
        .expect("in time");
}

#[tokio::test]
async fn what_another_server_took_over_stays_so_however_often_it_is_settled() {
    let Some(scratch) = Scratch::server() else {
        return;
    };
    let mut ledger = Ledger::on(scratch, Some(100)).await;
    reserve(&mut ledger).await;
    for _ in 0..2 {
        let mut settlement = settlement(&held("req_1", 60), 40);
        // its name is not in the database any more
        settlement.answer = Some(KeptAnswer {
            api_key_id: 1,
            idempotency_key: "k".into(),
            fingerprint: [0; 32],
            request_id: "req_1".into(),
            answer: "{}".into(),
            created_at: NOW,
        });
        let settled = ledger.settler.settle(settlement).await;
        assert!(matches!(settled, Err(Error::TakenOver)), "{settled:?}");
        assert_eq!(ledger.check().await, Some(100));
    }
}

#[tokio::test]
async fn what_could_not_be_posted_is_posted_later() {
    let mut ledger = Ledger::on(Scratch::file(), Some(1000)).await;
    let fails =
        "CREATE TRIGGER fails BEFORE INSERT ON transfers BEGIN SELECT raise(ABORT, 'no'); END";
    change(&ledger, fails).await;
    let mut open = Vec::new();
    for id in ["req_1", "req_2", "req_3"] {
        reserve(&mut ledger).await;
        open.push(held(id, 60));
    }
    ledger.settle(&open[0], 40).await;
    // nobody is told what lacks it
    for _ in 0..2 {
        let customer = ledger.store.customer(1).await;
        customer.expect_err("it cannot be posted");
        let rows = ledger.store.usage_rows(None, 0, 10).await;
        rows.expect_err("it cannot be posted");
    }
    // nor does anybody spend by it
    let wanted = ledger.reservation(owner(1), 1, 60, NOW);
    let reserved = ledger.settler.reserve(wanted).await;
    reserved.expect_err("it cannot be posted");
    let settled = ledger.settler.settle(settlement(&open[1], 40)).await;
    settled.expect_err("it cannot be posted");

    change(&ledger, "DROP TRIGGER fails").await;
    // what is held for the third
    assert_eq!(ledger.check().await, Some(1000 - 40 - 60));
    ledger.settle(&open[2], 50).await;
    assert_eq!(ledger.check().await, Some(1000 - 40 - 50));
    let rows = ledger.store.usage_rows(None, 0, 10).await.expect("rows");
    let ids: Vec<_> = rows.iter().map(|row| &*row.usage.request_id).collect();
    assert_eq!(ids, ["req_1", "req_3"]);
}

#[tokio::test]
async fn what_was_on_record_when_a_server_died_is_posted_by_the_next() {
    let mut ledger = Ledger::on(Scratch::file(), Some(1000)).await;
    ledger.budgets(owner(0), &[(Period::Day, 500)]).await;
    reserve(&mut ledger).await;
    ledger.settle(&held("req_1", 60), 40).await;
    assert_eq!(ledger.check().await, Some(960));

    // what a server has on record that dies now: one like it, and the same once more
    ledger.writer.abort();
    for (id, cost) in [("req_2", 50), ("req_1", 40)] {
        let sql = format!(
            "INSERT INTO journal SELECT NULL, '{id}', customer_id, api_key_id, model_id, \
             model_name, plugin_digest, prompt_tokens, completion_tokens, tokens_estimated, \
             prompt_price, completion_price, {cost}, status, error_code, latency_ms, created_at \
             FROM usage"
        );
        let added = query(AssertSqlSafe(sql)).execute(&ledger.store.write).await;
        assert_eq!(added.expect("added"), 1);
    }
    let audit = ledger.store.audit(NOW).await.expect("an audit");
    assert_eq!((audit.unposted, audit.transfers), (2, 1));
    ledger.crash().await;
    assert_eq!(in_journal_and_posted(&ledger).await, (0, 2));
    assert_eq!(ledger.check().await, Some(1000 - 40 - 50));
    let budgets = ledger.store.budgets(owner(0), NOW).await.expect("budgets");
    assert_eq!(budgets[0].spent, NanoDollars(90));
}

#[tokio::test]
async fn what_is_on_record_is_posted_though_nobody_asks() {
    let ledger = Ledger::on(Scratch::file(), Some(1000)).await;
    for (number, settled) in [1, 300, 1].into_iter().enumerate() {
        let requests: Vec<_> = (0..settled)
            .map(|request| held(&format!("req_{number}_{request}"), 0))
            .collect();
        join_all(requests.iter().map(|open| ledger.settle(open, 0))).await;
        let all = Duration::from_secs(10);
        let posted = async { while in_journal_and_posted(&ledger).await.0 > 0 {} };
        timeout(all, posted).await.expect("in time");
    }
    assert_eq!(in_journal_and_posted(&ledger).await, (0, 302));
    ledger.check().await;
}

/// How many requests are in the journal, and in the list of usage.
async fn in_journal_and_posted(ledger: &Ledger) -> (i64, i64) {
    let counts = "SELECT (SELECT count(*) FROM journal) AS journal, \
        (SELECT count(*) FROM usage) AS posted";
    let row = query(counts).fetch_one(&ledger.store.read).await;
    let row = row.expect("a row");
    let count = |name| row.try_get(name).expect("a count");
    (count("journal"), count("posted"))
}

#[tokio::test]
async fn posting_may_be_cut_off_anywhere() {
    let mut ledger = Ledger::on(Scratch::file(), Some(100_000)).await;
    ledger.budgets(owner(0), &[(Period::Day, 50_000)]).await;
    let mut left = 100_000;
    for polls in 0..12 {
        // the fast way, and the one from the journal itself
        for is_behind in [false, true] {
            let wanted = ledger.reservation(owner(0), 1, 60, NOW);
            let open = held(&wanted.request_id, 60);
            let reserved = ledger.settler.reserve(wanted).await.expect("an answer");
            assert!(matches!(reserved, Reserved::Held { .. }), "{reserved:?}");
            ledger.settle(&open, 40).await;
            left -= 40;
            if is_behind {
                ledger.store.books.lock().fall_behind();
            }
            // as when a client leaves that asked for its balance
            cut_off(ledger.store.up_to_date(), polls).await;
            let wanted = ledger.reservation(owner(1), 1, 70, NOW);
            let other = held(&wanted.request_id, 70);
            ledger.settler.reserve(wanted).await.expect("an answer");
            assert_eq!(ledger.check().await, Some(left - 70));
            let other = Open {
                owner: owner(1),
                ..other
            };
            ledger.settle(&other, 0).await;
        }
    }
    assert_eq!(ledger.check().await, Some(left));
}

/// Drops something that is still not done when it has waited so many times.
async fn cut_off(doing: impl Future, mut polls: usize) {
    let mut doing = pin!(doing);
    poll_fn(|context| {
        let is_done = doing.as_mut().poll(context).is_ready() || polls == 0;
        polls = polls.saturating_sub(1);
        match is_done {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Has 60 held for the next request of the first key.
async fn reserve(ledger: &mut Ledger) {
    let reserved = ledger.reserve(owner(0), 1, 60, NOW).await;
    assert!(matches!(reserved, Reserved::Held { .. }), "{reserved:?}");
}

/// A request of the first key, and what is held for it.
fn held(id: &str, amount: i64) -> Open {
    Open {
        id: id.into(),
        owner: owner(0),
        held: Some(NanoDollars(amount)),
        at: NOW,
    }
}

#[tokio::test]
async fn nothing_stays_held_for_a_request_that_is_on_record() {
    let mut ledger = Ledger::new(Some(100)).await;
    // as when a commit is said to have failed and has not
    for _ in 0..2 {
        ledger.requests = 0;
        reserve(&mut ledger).await;
        let open = held("req_1", 60);
        ledger.settle(&open, 40).await;
        assert_eq!(ledger.check().await, Some(60));
    }
}
