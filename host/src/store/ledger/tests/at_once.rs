//! The ledger under several servers and clients at once. What comes of it depends on
//! who is first; what must hold does not.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use time::Duration;
use tokio::task::JoinSet;

use super::{Budget, Ledger, NOW, Open, open, owner, settlement};
use crate::money::NanoDollars;
use crate::store::audit::Actor;
use crate::store::db::query;
use crate::store::ledger::budgets::Owner;
use crate::store::ledger::{Period, Reservation, Reserved};
use crate::store::scratch::Scratch;
use crate::store::{Error, Settler, Store};

/// Servers of a database that can have several.
const SERVERS: usize = 3;
/// How far customer 1 may go below 0.
const LIMIT: i64 = 150;
/// What it may spend in a month, and its first key in a day.
const MONTH: i64 = 400;
const DAY: i64 = 120;

/// What a client does next; numbers name keys, amounts and its requests at work.
#[derive(Clone, Debug)]
enum Step {
    Reserve {
        key: usize,
        least: i64,
        more: i64,
        days: i64,
    },
    /// Leaves before the reservation is there; the request is settled as one that
    /// nothing is held for.
    GiveUp {
        key: usize,
        most: i64,
    },
    Settle {
        open: usize,
        cost: i64,
    },
    /// The same request, at two servers at once.
    SettleAtTwo {
        open: usize,
        cost: i64,
    },
    /// Others book the same payment.
    TopUp(i64),
    /// Of customer 2, whose limits nobody is held to here.
    Budgets(i64),
    /// Dies with all that it has at work.
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..4_usize, 0..30_i64, 0..100_i64, 0..3_i64)
            .prop_map(|(key, least, more, days)| Step::Reserve { key, least, more, days }),
        1 => (0..4_usize, 1..100_i64).prop_map(|(key, most)| Step::GiveUp { key, most }),
        6 => (0..9_usize, 0..150_i64).prop_map(|(open, cost)| Step::Settle { open, cost }),
        2 => (0..9_usize, 0..150_i64).prop_map(|(open, cost)| Step::SettleAtTwo { open, cost }),
        2 => (1..6_i64).prop_map(Step::TopUp),
        1 => (0..300_i64).prop_map(Step::Budgets),
        1 => Just(Step::Die),
    ];
    prop::collection::vec(step, 1..25)
}

/// What a client has done.
#[derive(Default)]
struct Done {
    /// What requests cost that were settled, by customer and id.
    costs: BTreeMap<String, (i64, i64)>,
    /// Payments that are booked.
    payments: BTreeSet<i64>,
}

struct Client {
    /// Its own server, and another one.
    settlers: [Settler; 2],
    store: Store,
    number: usize,
    requests: usize,
    open: Vec<Open>,
    done: Done,
}

impl Client {
    async fn play(mut self, steps: Vec<Step>) -> Done {
        for step in steps {
            self.step(step).await;
            // whoever is first, no reservation passes the limit
            let customer = self.store.customer(1).await.expect("customer 1");
            // what is held of a file is as of a moment later than its balance, which
            // others may have topped up meanwhile
            let held = match self.store.write.is_shared() {
                true => customer.held.0,
                false => 0,
            };
            let room = customer.balance.0 - held + LIMIT;
            assert!(room >= 0, "{room}");
        }
        for open in std::mem::take(&mut self.open) {
            self.settle(open, 40, 1).await;
        }
        self.done
    }

    async fn step(&mut self, step: Step) {
        let is_any_open = !self.open.is_empty();
        match step {
            Step::Reserve {
                key,
                least,
                more,
                days,
            } => {
                let wanted = self.reservation(owner(key), least, least + more, days);
                let open = opened(&wanted);
                match self.settlers[0].reserve(wanted).await.expect("an answer") {
                    Reserved::Uncapped => self.open.push(open),
                    Reserved::Held { amount, .. } => self.open.push(Open {
                        held: Some(amount),
                        ..open
                    }),
                    Reserved::Refused { .. } => {}
                }
            }
            Step::GiveUp { key, most } => {
                let wanted = self.reservation(owner(key), 0, most, 0);
                let open = Open {
                    held: Some(NanoDollars(0)),
                    ..opened(&wanted)
                };
                tokio::select! {
                    biased;
                    _ = self.settlers[0].reserve(wanted) => {}
                    () = std::future::ready(()) => {}
                }
                self.settle(open, 0, 1).await;
            }
            Step::Settle { open, cost } if is_any_open => {
                let open = self.open.remove(open % self.open.len());
                self.settle(open, cost, 1).await;
            }
            Step::SettleAtTwo { open, cost } if is_any_open => {
                let open = self.open.remove(open % self.open.len());
                self.settle(open, cost, 2).await;
            }
            Step::TopUp(number) => {
                let (reference, amount) = (format!("payment-{number}"), NanoDollars(number));
                let booked = self
                    .store
                    .add_credit(1, amount, &reference, &Actor::Server, NOW);
                // the same amount: it was booked by this one or by another
                booked.await.expect("booked");
                self.done.payments.insert(number);
            }
            Step::Budgets(amount) => {
                budgets(&self.store, Owner::customer(2), Period::Day, amount).await;
            }
            Step::Die => self.open.clear(),
            _ => {}
        }
    }

    fn reservation(&mut self, owner: Owner, least: i64, most: i64, days: i64) -> Reservation {
        self.requests += 1;
        Reservation {
            request_id: format!("req_{}_{}", self.number, self.requests),
            customer_id: owner.customer_id,
            api_key_id: owner.api_key_id.expect("a request has a key"),
            most: NanoDollars(most),
            least: NanoDollars(least),
            created_at: NOW + Duration::days(days),
            expires_at: NOW + Duration::days(100),
        }
    }

    /// Settles a request at one server or at two.
    async fn settle(&mut self, open: Open, cost: i64, servers: usize) {
        let settle = self.settlers[..servers]
            .iter()
            .map(|settler| settler.settle(settlement(&open, cost)));
        for settled in futures_util::future::join_all(settle).await {
            settled.expect("settled");
        }
        let cost = settlement(&open, cost).usage.cost.0;
        let of = (open.owner.customer_id, cost);
        self.done.costs.insert(open.id, of);
    }
}

fn opened(wanted: &Reservation) -> Open {
    Open {
        id: wanted.request_id.clone(),
        owner: Owner::of_request(wanted.customer_id, wanted.api_key_id),
        held: None,
        at: wanted.created_at,
    }
}

async fn budgets(store: &Store, owner: Owner, period: Period, amount: i64) {
    let budget = Budget {
        period,
        amount: NanoDollars(amount),
        near_percent: 80,
    };
    store
        .set_budgets(owner, &[budget], &Actor::Server, NOW)
        .await
        .expect("set");
}

/// Lets clients do this at once, at the servers of a database, and compares what it
/// has come to with what each of them has seen.
async fn play(scratch: Scratch, servers: usize, clients: Vec<Vec<Step>>) {
    let ledger = Ledger::on(scratch, Some(LIMIT)).await;
    budgets(&ledger.store, Owner::customer(1), Period::Month, MONTH).await;
    budgets(&ledger.store, owner(0), Period::Day, DAY).await;
    let mut stores = vec![ledger.store.clone()];
    let mut settlers = vec![ledger.settler.clone()];
    for number in 1..servers {
        let store = open(&ledger.scratch).await;
        settlers.push(Settler::start(store.clone(), number.to_string()).0);
        stores.push(store);
    }
    let mut playing = JoinSet::new();
    for (number, steps) in clients.into_iter().enumerate() {
        let client = Client {
            settlers: [0, 1].map(|next| settlers[(number + next) % servers].clone()),
            store: stores[number % servers].clone(),
            number,
            requests: 0,
            open: Vec::new(),
            done: Done::default(),
        };
        playing.spawn(client.play(steps));
    }
    let mut done = Done::default();
    for mut client in playing.join_all().await {
        done.costs.append(&mut client.costs);
        done.payments.append(&mut client.payments);
    }
    // what the dead held is freed, by all at once; on a file it ends with the process
    let free = stores
        .iter()
        .map(|store| store.void_holds_of_others("nobody"));
    for freed in futures_util::future::join_all(free).await {
        freed.expect("freed");
    }
    check(&open(&ledger.scratch).await, &done).await;
}

async fn check(store: &Store, done: &Done) {
    let audit = store.audit(NOW).await.expect("an audit");
    assert_eq!((audit.problems, audit.holds), (vec![], 0));
    let paid: i64 = done.payments.iter().sum();
    for (id, paid) in [(1, paid), (2, 0)] {
        let customer = store.customer(id).await.expect("a customer");
        let costs = done.costs.values().filter(|(of, _)| *of == id);
        let spent: i64 = costs.map(|(_, cost)| cost).sum();
        assert_eq!((customer.balance.0, customer.held.0), (paid - spent, 0));
    }
    let rows = store.usage_rows(None, 0, 1000).await.expect("rows");
    let mut ids: Vec<_> = rows.into_iter().map(|row| row.usage.request_id).collect();
    ids.sort_unstable();
    assert!(ids.iter().eq(done.costs.keys()), "{ids:?}");
    let over = "SELECT count(*) AS over FROM spending JOIN budgets ON id = budget_id \
                WHERE customer_id = 1 AND spent > amount";
    let over = query(over).fetch_one(&store.read).await.expect("a count");
    assert_eq!(over.try_get::<i64>("over").expect("a number"), 0);
    let again = store.add_credit(1, NanoDollars(1000), "payment-1", &Actor::Server, NOW);
    if done.payments.contains(&1) {
        assert!(matches!(again.await, Err(Error::ReferenceTaken)));
    }
}

fn run(scratch: Scratch, servers: usize, clients: Vec<Vec<Step>>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(play(scratch, servers, clients));
}

proptest! {
    // what is found is tried again as it is made smaller: a fault that depends on
    // who is first may hide meanwhile, and its seed is printed all the same
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_first_the_sums_hold_and_no_limit_is_passed(
        clients in prop::collection::vec(steps(), 2..7),
    ) {
        run(Scratch::file(), 1, clients.clone());
        if let Some(server) = Scratch::server() {
            run(server, SERVERS, clients);
        }
    }
}
