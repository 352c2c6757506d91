//! What a customer has and may spend, as parts of pages.

use maud::{Markup, html};

use super::figures::time;
use super::layout::Turning;
use crate::store::customers::Customer;
use crate::store::keys::Key;
use crate::store::ledger::Transfer;
use crate::store::ledger::budgets::Spending;

/// The customer's balance, what is held of it and how far below 0 it may go.
pub fn balance(customer: &Customer) -> Markup {
    html! {
        dl .totals {
            div {
                dt { "Balance" }
                dd #balance { (customer.balance) }
                @if customer.is_near {
                    dd { span .status .failed { "nearly used" } }
                }
                dd .note {
                    (customer.held) " held for requests at work; "
                    @match customer.credit_limit {
                        Some(limit) => { "credit limit " (limit) },
                        None => "no credit limit",
                    }
                }
            }
        }
    }
}

/// A row for each budget; nothing where there is none.
pub fn budgets(budgets: &[Spending], keys: &[Key]) -> Markup {
    html! {
        @if !budgets.is_empty() {
            section #budgets {
                h2 { "Budgets" }
                div .scroll { table {
                    thead { tr {
                        th { "Of" }
                        th { "For" }
                        th .figure { "Amount" }
                        th .figure { "Spent" }
                        th .figure { "Held" }
                        th { "State" }
                        th { "Since" }
                    } }
                    tbody { @for spending in budgets { (budget(spending, keys)) } }
                } }
            }
        }
    }
}

fn budget(spending: &Spending, keys: &[Key]) -> Markup {
    let Spending { owner, budget, .. } = spending;
    let (class, state) = if spending.spent >= budget.amount {
        ("failed", "spent")
    } else if spending.is_near() {
        ("failed", "nearly spent")
    } else {
        ("ok", "ok")
    };
    html! {
        tr {
            td {
                @match owner.api_key_id {
                    None => "all keys",
                    Some(id) => @match keys.iter().find(|key| key.id == id) {
                        Some(key) => (key.name),
                        None => { "key " (id) },
                    },
                }
            }
            td { (budget.period.as_str()) }
            td .figure { (budget.amount) }
            td .figure { (spending.spent) }
            td .figure { (spending.held) }
            td { span class={ "status " (class) } { (state) } }
            td .time {
                @if budget.period.end(spending.start).is_some() { (time(spending.start)) }
            }
        }
    }
}

/// A row for each payment and correction.
pub fn payments(transfers: &[Transfer], turning: &Turning) -> Markup {
    html! {
        section #payments {
            h2 { (turning.title("payments")) }
            @if transfers.is_empty() {
                p .note { "No payment." }
            } @else {
                div .scroll { table {
                    thead { tr {
                        th { "Time" }
                        th { "Kind" }
                        th { "Reference" }
                        th .figure { "Amount" }
                    } }
                    tbody { @for transfer in transfers { tr {
                        td .time { (time(transfer.created_at)) }
                        td { (transfer.reason.as_str().replace('_', " ")) }
                        td { (transfer.reference) }
                        td .figure { (transfer.amount) }
                    } } }
                } }
            }
            (turning.links("payments"))
        }
    }
}
