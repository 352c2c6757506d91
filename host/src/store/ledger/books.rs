//! What requests change of their customers' money: read by one script, changed in
//! memory, and written by another with a statement for each table, however many
//! requests they are.
//!
//! Where a database has several servers, books are read for each commit, and what is
//! held is written, for all to see. A file is one process's alone: its books stay
//! open from commit to commit, and what is held is in them and nowhere else, since it
//! ends with the process. So nothing is written to reserve, and for a customer that
//! is known nothing is read. What they have of requests goes to the file later than the
//! requests' usage: see [`journal`](super::journal).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem::take;
use std::sync::Arc;

use time::OffsetDateTime;

use super::accounts::{self, Account};
use super::budgets::{self, Counted, Owner, Spending};
use super::charges::{self, Charge};
use super::credit::Nearly;
use super::hold::{self, Ended, Hold, Holds};
use super::{Booked, Cap, Near, Reservation, Reserved};
use crate::money::NanoDollars;
use crate::store::db::{Ran, Script, StepId, Transaction};
use crate::store::outbox::Owed;
use crate::store::usage::{self, Usage};
use crate::store::{Error, millis};

/// For how many customers, and their keys, books stay open. More are read again; in
/// tests that happens all the time.
const MOST: usize = if cfg!(test) { 4 } else { 100_000 };

/// Whose books to open, and for what.
#[derive(Debug, Default)]
pub(in crate::store) struct Scope<'a> {
    customers: BTreeSet<i64>,
    /// Requests that are over: what is held for them is freed.
    ended: Vec<Ended<'a>>,
    /// Requests that budgets may count.
    counted: HashSet<Counted>,
}

impl<'a> Scope<'a> {
    /// Adds a customer of whom money is changed.
    pub fn change(&mut self, customer_id: i64) {
        self.customers.insert(customer_id);
    }

    /// Adds a request, admitted at this time, of which budgets are to know.
    pub fn count(&mut self, request: Owner, at: OffsetDateTime) {
        self.change(request.customer_id);
        self.counted.insert(Counted::new(request, at));
    }

    /// Adds a request for which nothing is to be held any more.
    pub fn end(&mut self, request: Ended<'a>) {
        self.count(request.owner, request.created_at);
        self.ended.push(request);
    }

    /// The last day of which budgets are to know, in milliseconds since 1970.
    fn day(&self) -> Option<i64> {
        self.counted.iter().map(Counted::day).max()
    }
}

/// What a script will read for books.
pub(in crate::store) struct Asked<'a> {
    accounts: Option<StepId>,
    closed: Option<StepId>,
    budgets: Option<StepId>,
    scope: Scope<'a>,
}

/// The accounts and budgets of some customers, and what is to be written of them.
/// Nobody else changes them until they are written, or forgotten.
#[derive(Debug)]
pub(in crate::store) struct Books {
    accounts: HashMap<i64, Account>,
    budgets: HashMap<i64, Vec<budgets::Row>>,
    /// What `budgets` has all budgets of.
    counted: HashSet<Counted>,
    /// The last day that they know, in milliseconds since 1970.
    day: i64,
    holds: Holds,
    /// What is in them of requests and yet to be written.
    booked: Booked,
    charges: Vec<Charge>,
    /// Customers of whom something is to be written.
    changed: BTreeSet<i64>,
    /// Whether it is unknown which part of what is in them the file has.
    is_behind: bool,
}

/// What is held here at one moment. Who shows it with what the database tells asks for it
/// first: then a request that ends meanwhile may be in both, and never in neither.
#[derive(Debug)]
pub(in crate::store) struct Held(Vec<Hold>);

impl Books {
    /// Of a database that several servers have; `process` names this run of one of them
    /// in what it holds.
    pub fn shared(process: Arc<str>) -> Self {
        let new = Vec::new();
        Self::new(Holds::Shared { process, new })
    }

    /// Of a database that is this process's own.
    pub fn own() -> Self {
        Self::new(Holds::Own(HashMap::new()))
    }

    fn new(holds: Holds) -> Self {
        Self {
            accounts: HashMap::new(),
            budgets: HashMap::new(),
            counted: HashSet::new(),
            day: 0,
            holds,
            booked: Booked::default(),
            charges: Vec::new(),
            changed: BTreeSet::new(),
            is_behind: false,
        }
    }

    /// Forgets all but what is held here and nowhere else: it is read again.
    pub fn forget(&mut self) {
        let none = Holds::Own(HashMap::new());
        *self = match std::mem::replace(&mut self.holds, none) {
            Holds::Shared { process, .. } => Self::shared(process),
            holds @ Holds::Own(_) => Self {
                is_behind: self.is_any_unposted(),
                ..Self::new(holds)
            },
        };
    }

    /// Forgets it, as the journal may have what is not in them.
    pub fn fall_behind(&mut self) {
        self.forget();
        self.is_behind = true;
    }

    /// What was to be written is, all that the journal had.
    pub fn catch_up(&mut self) {
        self.is_behind = false;
    }

    /// Whether the journal itself is to be read, to post what is in it.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// How many requests are in them and yet to be posted.
    pub fn unposted(&self) -> usize {
        self.booked.usage.len()
    }

    /// Whether there may be anything to be posted.
    pub fn is_any_unposted(&self) -> bool {
        self.is_behind || !self.booked.usage.is_empty()
    }

    /// Whether nothing need be read for these.
    pub fn have_all(&self, scope: &Scope<'_>) -> bool {
        let (customers, counted) = self.lacking(scope);
        customers.is_empty() && counted.is_empty() && !self.must_forget(scope)
    }

    /// Whose accounts they lack, and what of budgets.
    fn lacking<'a>(&'a self, scope: &'a Scope<'_>) -> (BTreeSet<i64>, Vec<&'a Counted>) {
        let is_new = |id: &&i64| !self.accounts.contains_key(*id);
        let customers = scope.customers.iter().filter(is_new).copied().collect();
        let counted = scope.counted.difference(&self.counted).collect();
        (customers, counted)
    }

    /// Whether a new day has begun, so that those of past ones do not pile up, or they
    /// are too many.
    fn must_forget(&self, scope: &Scope<'_>) -> bool {
        scope.day() > Some(self.day) || self.accounts.len() + self.counted.len() > MOST
    }

    /// Has a script read what is not in them.
    pub fn ask<'a>(
        &mut self,
        transaction: &Transaction<'_>,
        script: &mut Script<'_>,
        scope: Scope<'a>,
    ) -> Asked<'a> {
        if self.must_forget(&scope) {
            let day = self.day.max(scope.day().unwrap_or_default());
            self.forget();
            self.day = day;
        }
        let (customers, counted) = self.lacking(&scope);
        // first of all, since what is read after it nobody else changes
        let accounts =
            (!customers.is_empty()).then(|| script.add(accounts::lock(transaction, &customers)));
        let closed = (self.holds.are_shared() && !scope.ended.is_empty())
            .then(|| script.add(hold::close(transaction, &scope.ended)));
        let budgets =
            (!counted.is_empty()).then(|| script.add(budgets::of_requests(transaction, &counted)));
        Asked {
            accounts,
            closed,
            budgets,
            scope,
        }
    }

    /// Takes in what the script has read, and that it freed what the database held for
    /// requests that are over. Returns of how many of them that was.
    ///
    /// # Errors
    /// When it read what cannot be.
    pub fn read(&mut self, asked: Asked<'_>, ran: &Ran) -> Result<usize, Error> {
        let held = match (asked.accounts, asked.budgets) {
            // all of it was known: nearly always, on a file
            (None, None) => Held(Vec::new()),
            _ => self.held(),
        };
        for (customer_id, mut account) in accounts::by_customer(ran.rows(asked.accounts))? {
            account.held += held.of(customer_id).0;
            self.accounts.insert(customer_id, account);
        }
        for mut row in budgets::found(ran.rows(asked.budgets))? {
            row.hold(held.counting_in(&row.spending).0, false);
            let rows = self
                .budgets
                .entry(row.spending.owner.customer_id)
                .or_default();
            if !rows.iter().any(|known| known.is_same(&row)) {
                rows.push(row);
            }
        }
        self.counted.extend(asked.scope.counted);
        let closed = hold::closed(ran.rows(asked.closed))?;
        for hold in &closed {
            self.add_to_held(hold, -hold.amount.0)?;
        }
        Ok(closed.len())
    }

    /// Frees what is held here for a request that could not be settled.
    pub fn give_up(&mut self, request_id: &str) {
        // an account that they lack is read later, without this
        self.free(request_id).ok();
    }

    /// What is held beside what the database tells.
    pub fn held(&self) -> Held {
        Held(self.holds.own().copied().collect())
    }

    /// For how many requests something is held, beside those that the database knows.
    pub fn open(&self) -> usize {
        match &self.holds {
            Holds::Shared { .. } => 0,
            Holds::Own(holds) => holds.len(),
        }
    }

    /// # Errors
    /// [`Error::NotFound`] where they lack the account of one of these customers.
    pub fn must_have(&self, customers: impl IntoIterator<Item = i64>) -> Result<(), Error> {
        let mut customers = customers.into_iter();
        match customers.all(|id| self.accounts.contains_key(&id)) {
            true => Ok(()),
            false => Err(Error::NotFound),
        }
    }

    fn account(&mut self, customer_id: i64) -> Result<&mut Account, Error> {
        self.accounts.get_mut(&customer_id).ok_or(Error::NotFound)
    }

    /// The budgets that a request counts in, in the periods of its time.
    fn budgets(
        &mut self,
        request: Owner,
        at: OffsetDateTime,
    ) -> impl Iterator<Item = &mut budgets::Row> {
        let budgets = self.budgets.get_mut(&request.customer_id);
        budgets
            .into_iter()
            .flatten()
            .filter(move |row| row.spending.counts(request, at))
    }

    fn add_to_held(&mut self, hold: &Hold, amount: i64) -> Result<(), Error> {
        let is_shared = self.holds.are_shared();
        self.account(hold.owner.customer_id)?
            .hold(amount, is_shared);
        if is_shared {
            self.changed.insert(hold.owner.customer_id);
        }
        for row in self.budgets(hold.owner, hold.created_at) {
            row.hold(amount, is_shared);
        }
        Ok(())
    }

    /// Frees what is held here for a request that is over.
    pub fn free(&mut self, request_id: &str) -> Result<(), Error> {
        if let Holds::Own(holds) = &mut self.holds
            && let Some(hold) = holds.remove(request_id)
        {
            self.add_to_held(&hold, -hold.amount.0)?;
        }
        Ok(())
    }

    /// Books a request that has its usage row, or gets it in this commit: frees what is
    /// held for it here and posts its cost, at one moment, since others may reserve at any.
    pub fn settle(&mut self, usage: &Arc<Usage>) -> Result<(), Error> {
        self.free(&usage.request_id)?;
        if usage.cost.0 > 0 {
            self.charge(usage)?;
        }
        self.booked.usage.push(Arc::clone(usage));
        Ok(())
    }

    /// Takes what a request cost.
    fn charge(&mut self, usage: &Usage) -> Result<(), Error> {
        let cost = usage.cost;
        let account = self.account(usage.customer_id)?;
        account.post(cost.0);
        let paid = (account.posted + cost.0).clamp(0, cost.0);
        let owed = cost.0 - paid;
        let mut near = Vec::new();
        if let (Some(limit), Some(near_at)) = (account.credit_limit, account.near_at)
            && account.posted <= near_at
            && account.posted + cost.0 > near_at
        {
            near.push(Near::Credit(Nearly {
                request_id: usage.request_id.clone(),
                customer_id: usage.customer_id,
                balance: NanoDollars(account.posted),
                limit: NanoDollars(limit),
            }));
        }
        let (account, at) = (account.id, millis(usage.created_at));
        self.changed.insert(usage.customer_id);
        self.charges
            .push(Charge::new(account, cost.0, &usage.request_id, at));
        let owner = Owner::of_request(usage.customer_id, usage.api_key_id);
        let rows = self.budgets(owner, usage.created_at);
        near.extend(rows.filter_map(|row| row.spend(cost)).map(Near::Budget));
        let near = near.into_iter().map(|near| (near, usage.created_at));
        self.booked.near.extend(near);
        if owed > 0 {
            let owing = self.booked.owed.entry(usage.customer_id).or_insert(Owed {
                customer_id: usage.customer_id,
                amount: 0,
                created_at: at,
            });
            owing.amount += owed;
        }
        Ok(())
    }

    /// The budgets that a reservation counts in whose periods have not begun.
    pub fn unopened(&mut self, wanted: &Reservation) -> Vec<budgets::Row> {
        let rows = self.budgets(wanted.owner(), wanted.created_at);
        rows.filter(|row| !row.is_open()).map(|row| *row).collect()
    }

    /// Takes in one of them, opened.
    pub fn opened(&mut self, opened: budgets::Row) {
        let rows = self
            .budgets
            .entry(opened.spending.owner.customer_id)
            .or_default();
        rows.retain(|row| !row.is_same(&opened));
        rows.push(opened);
    }

    /// Reserves by what is in them, if all that is needed is.
    pub fn reserve_at_once(&mut self, wanted: &Reservation) -> Option<Result<Reserved, Error>> {
        let counted = Counted::new(wanted.owner(), wanted.created_at);
        let is_known = self.accounts.contains_key(&wanted.customer_id)
            && self.counted.contains(&counted)
            && self.unopened(wanted).is_empty();
        is_known.then(|| self.reserve(wanted))
    }

    /// Holds what a request may come to cost, as far as all of its caps leave it.
    /// To be called after all that this transaction settles.
    pub fn reserve(&mut self, wanted: &Reservation) -> Result<Reserved, Error> {
        let credit = self.account(wanted.customer_id)?.left();
        let mut tightest = credit.map(|left| (NanoDollars(left), Cap::Credit));
        for row in self.budgets(wanted.owner(), wanted.created_at) {
            let (left, cap) = row.left();
            if tightest.is_none_or(|(least, _)| left < least) {
                tightest = Some((left, cap));
            }
        }
        let Some((left, by)) = tightest else {
            return Ok(Reserved::Uncapped);
        };
        if left < wanted.least {
            return Ok(Reserved::Refused { by, left });
        }
        let amount = left.min(wanted.most);
        let hold = Hold {
            amount,
            owner: wanted.owner(),
            created_at: wanted.created_at,
        };
        self.add_to_held(&hold, amount.0)?;
        self.holds.add(wanted, hold);
        let capped_by = (amount < wanted.most).then_some(by);
        Ok(Reserved::Held { amount, capped_by })
    }

    /// Has a script write what has changed, but for the rows of usage; returns what
    /// requests are booked by that. A file's books are behind from then on, until they
    /// [catch up](Self::catch_up). The house's account comes last: all servers
    /// of a database have it in common, and wait for each other from then on.
    pub fn write(&mut self, transaction: &Transaction<'_>, script: &mut Script<'_>) -> Booked {
        self.is_behind = !self.holds.are_shared();
        let booked = take(&mut self.booked);
        if !booked.usage.is_empty() {
            script.add(usage::add_to_sums(transaction, &booked.usage));
        }
        let (mut budgets, mut accounts) = (Vec::new(), Vec::new());
        for id in take(&mut self.changed) {
            let rows = self.budgets.get_mut(&id).into_iter().flatten();
            budgets.extend(rows.filter_map(budgets::Row::written));
            accounts.extend(self.accounts.get_mut(&id).and_then(Account::written));
        }
        budgets::write(transaction, script, &budgets);
        self.holds.write(transaction, script);
        accounts::write(transaction, script, &accounts);
        charges::write(transaction, script, &take(&mut self.charges));
        booked
    }
}

impl Held {
    /// For requests of a customer.
    pub fn of(&self, customer_id: i64) -> NanoDollars {
        self.sum(|hold| hold.owner.customer_id == customer_id)
    }

    /// For those that count in a budget.
    pub fn counting_in(&self, spending: &Spending) -> NanoDollars {
        self.sum(|hold| spending.counts(hold.owner, hold.created_at))
    }

    fn sum(&self, is_of_it: impl Fn(&Hold) -> bool) -> NanoDollars {
        let amounts = self.0.iter().filter(|hold| is_of_it(hold));
        NanoDollars(amounts.map(|hold| hold.amount.0).sum())
    }
}
