//! What a commit that fails, or is said to, leaves behind.

use super::super::Reserved;
use super::{Ledger, NOW, Open, change, owner, settlement};
use crate::money::NanoDollars;

#[tokio::test]
async fn what_could_not_be_settled_is_freed_by_what_can_be_written_next() {
    let mut ledger = Ledger::new(Some(100)).await;
    let reserved = ledger.reserve(owner(0), 1, 60, NOW).await;
    assert!(matches!(reserved, Reserved::Held { .. }), "{reserved:?}");
    let (fill, clear) = match ledger.store.write.is_shared() {
        true => (
            "ALTER TABLE usage ADD CONSTRAINT is_full CHECK (FALSE) NOT VALID",
            "ALTER TABLE usage DROP CONSTRAINT is_full",
        ),
        false => (
            "CREATE TRIGGER full BEFORE INSERT ON usage BEGIN SELECT raise(ABORT, 'full'); END",
            "DROP TRIGGER full",
        ),
    };
    change(&ledger, fill).await;
    let open = Open {
        id: "req_1".into(),
        owner: owner(0),
        held: Some(NanoDollars(60)),
        at: NOW,
    };
    let settled = ledger.settler.settle(settlement(&open, 60)).await;
    settled.expect_err("the disk is full");
    // other servers cannot be told of it yet
    let left = if ledger.store.write.is_shared() {
        40
    } else {
        100
    };
    assert_eq!(ledger.check().await, Some(left));
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
async fn a_commit_that_is_tried_again_holds_once() {
    let mut ledger = Ledger::new(Some(10_000)).await;
    if ledger.store.write.is_shared() {
        return;
    }
    let fails = "CREATE TRIGGER fails BEFORE INSERT ON transfers WHEN random() % 2 = 0 \
        BEGIN SELECT raise(ABORT, 'now and then'); END";
    change(&ledger, fails).await;
    let mut open: Option<Open> = None;
    let mut left = 10_000;
    for _ in 0..60 {
        let wanted = ledger.reservation(owner(0), 1, 60, NOW);
        let next = Open {
            id: wanted.request_id.clone(),
            owner: owner(0),
            held: Some(NanoDollars(60)),
            at: NOW,
        };
        // the one is settled and the other reserved by one commit
        ledger.store.books.lock().forget();
        let settler = &ledger.settler;
        let reserve = settler.reserve(wanted);
        if let Some(last) = &open {
            let (settled, reserved) = tokio::join!(settler.settle(settlement(last, 40)), reserve);
            left -= if settled.is_ok() { 40 } else { 0 };
            let held = if reserved.is_ok() { 60 } else { 0 };
            assert_eq!(ledger.check().await, Some(left - held));
            open = reserved.is_ok().then_some(next);
        } else {
            reserve.await.expect("no row is written");
            open = Some(next);
        }
    }
}

#[tokio::test]
async fn nothing_stays_held_for_a_request_that_is_on_record() {
    let mut ledger = Ledger::new(Some(100)).await;
    // as when a commit is said to have failed and has not
    for _ in 0..2 {
        ledger.requests = 0;
        let reserved = ledger.reserve(owner(0), 1, 60, NOW).await;
        assert!(matches!(reserved, Reserved::Held { .. }), "{reserved:?}");
        let open = Open {
            id: "req_1".into(),
            owner: owner(0),
            held: Some(NanoDollars(60)),
            at: NOW,
        };
        ledger.settle(&open, 40).await;
        assert_eq!(ledger.check().await, Some(60));
    }
}

#[tokio::test]
async fn what_a_commit_freed_is_held_again_if_it_fails_and_others_change_money_meanwhile() {
    let mut ledger = Ledger::new(Some(100)).await;
    if ledger.store.write.is_shared() {
        return;
    }
    let reserved = ledger.reserve(owner(0), 1, 60, NOW).await;
    assert!(matches!(reserved, Reserved::Held { .. }), "{reserved:?}");
    let open = Open {
        id: "req_1".into(),
        owner: owner(0),
        held: Some(NanoDollars(60)),
        at: NOW,
    };
    let mut books = ledger.store.books.lock();
    let usage = settlement(&open, 40).usage;
    books.settle(&usage).expect("the books know the customer");
    // a payment, which is next to write
    books.forget();
    books.undo();
    assert_eq!(books.held().of(1), NanoDollars(60));
}
