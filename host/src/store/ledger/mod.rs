//! The ledger: what customers have, what is held for requests at work, and what
//! was spent, to the nano-dollar.
//!
//! Double entry: a *transfer* takes from one account what it gives to another.
//! Before a request is sent to its model, the most that it can cost is *held*;
//! at its end the hold is turned into the transfer of what it did cost, in the
//! transaction of its usage row. What is stored beside transfers, usage and
//! holds (`posted`, `held`, `spending`) is a sum of them, kept so that no sum
//! must be made for a request; [`Store::audit`](super::Store::audit) makes them again.
//! What is held of a file is not stored: see [`books`]. What its requests used is on
//! record in its journal first, and posted to the rest a little later: see [`journal`].
//!
//! Whatever is settled, and held on a server, is written by the one task of
//! [`Settler`](super::Settler).

mod accounts;
mod audit;
mod booked;
mod books;
pub mod budgets;
mod charges;
mod credit;
mod hold;
mod journal;
mod limited;
mod period;
#[cfg(test)]
mod tests;

pub(super) use booked::Booked;
pub(super) use books::{Books, Held, Scope};
pub(super) use credit::renew_near;
pub use credit::{NEAR_PERCENT, Nearly, Transfer};
pub use hold::{Cap, Reservation, Reserved};
pub(super) use hold::{Ended, HELD, void};
pub(super) use limited::Limited;
pub use period::Period;

/// The account of what customers used.
const REVENUE: i64 = 2;
/// The account of what customers paid.
const PAYMENTS: i64 = 1;

/// What a request has brought near its end.
#[derive(Debug)]
pub(super) enum Near {
    Budget(budgets::Near),
    Credit(Nearly),
}

impl Near {
    /// Tells the operator.
    pub(super) fn log(&self) {
        match self {
            Self::Budget(near) => near.log(),
            Self::Credit(near) => near.log(),
        }
    }
}
