//! `GET /dashboard/{customer_id}`: what a customer has and used.

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use super::chart::{self, Range};
use super::figures::time;
use super::layout::Turning;
use super::month::{self, Month};
use super::session::Viewer;
use super::{keys, layout, money, usage};
use crate::http::AppState;
use crate::http::api::customers::missing;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::json::{Id, Query};
use crate::store::customers::Customer;
use crate::store::ledger::Transfer;
use crate::store::usage::{PeriodTotals, WithKey};

/// Requests that are listed, and payments.
const LATEST: u32 = 20;

/// What to show, and whether it stays as it is.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct View {
    range: Range,
    month: Month,
    paused: bool,
    /// Requests before this place in their list.
    before: Option<i64>,
    /// Payments before this number.
    payments_before: Option<i64>,
}

impl View {
    fn path(self, customer_id: i64) -> String {
        let paused = if self.paused { "&paused=true" } else { "" };
        let place = |name, place: Option<i64>| {
            let text = place.map(|place| format!("&{name}={place}"));
            text.unwrap_or_default()
        };
        format!(
            "/dashboard/{customer_id}?range={}&month={}{paused}{}{}",
            self.range.as_str(),
            self.month.as_str(),
            place("before", self.before),
            place("payments_before", self.payments_before)
        )
    }

    /// From the requests that are shown to others.
    fn turn_requests(self, customer_id: i64, rows: &mut Vec<WithKey>) -> Turning {
        let before = (self.before, last_shown(rows, |request| request.row.id));
        turning(before, |before| Self { before, ..self }.path(customer_id))
    }

    /// The same of payments.
    fn turn_payments(self, customer_id: i64, rows: &mut Vec<Transfer>) -> Turning {
        let before = (self.payments_before, last_shown(rows, |payment| payment.id));
        turning(before, |payments_before| {
            let view = Self {
                payments_before,
                ..self
            };
            view.path(customer_id)
        })
    }
}

/// Takes away the row that only tells that there are earlier ones: the place of the last that
/// is shown then.
fn last_shown<T>(rows: &mut Vec<T>, place: impl Fn(&T) -> i64) -> Option<i64> {
    let are_more = rows.len() > LATEST as usize;
    rows.truncate(LATEST as usize);
    rows.last().filter(|_| are_more).map(place)
}

/// From the rows before the first of these places, if not the latest, to those before the second.
fn turning(
    (before, last): (Option<i64>, Option<i64>),
    path: impl Fn(Option<i64>) -> String,
) -> Turning {
    Turning {
        earlier: last.map(|last| path(Some(last))),
        latest: before.map(|_| path(None)),
    }
}

/// `GET /dashboard/{customer_id}`
pub async fn show(
    Viewer(caller): Viewer,
    State(state): State<AppState>,
    Id(id): Id,
    Query(view): Query<View>,
) -> Result<Markup, ApiError> {
    // somebody else's is not told from one that does not exist
    caller.scope(Some(id))?;
    let AppState { store, clock, .. } = &state;
    let customer = store.customer_on_record(id).await.map_err(missing)?;
    let (now, range) = (clock.now(), view.range);
    let period_ms = range.period().whole_seconds() * 1000;
    let by_model = store.usage_by_model(Some(id), view.month.span(now)).await?;
    let over_time = store
        .usage_over_time(id, range.since(now), period_ms)
        .await?;
    let before = view.before.unwrap_or(i64::MAX);
    let mut requests = store.latest_usage(id, before, LATEST + 1).await?;
    let of_requests = view.turn_requests(id, &mut requests);
    let before = view.payments_before.unwrap_or(i64::MAX);
    let mut payments = store.latest_payments(id, before, LATEST + 1).await?;
    let of_payments = view.turn_payments(id, &mut payments);
    let budgets = store.all_budgets(id, now).await?;
    let keys = store.keys(Some(id), 0, keys::MOST).await?;
    let live = state.generator.live().load();
    let may_change = matches!(caller, Caller::Admin) && customer.deleted_at.is_none();
    let content = html! {
        h1 { (customer.name) }
        (about(&customer))
        p .note {
            "As of " (time(now)) ". "
            @let other = View { paused: !view.paused, ..view }.path(id);
            @if view.paused {
                a href=(other) { "Keep it up to date" }
            } @else {
                "Renewed every " (layout::REFRESH) " seconds: " a href=(other) { "pause" }
            }
            "."
        }
        (money::balance(&customer))
        (money::budgets(&budgets, &keys))
        (month::choice(view.month, now, |month| View { month, ..view }.path(id)))
        (usage::totals(&by_model))
        (usage::by_model(&by_model))
        (requests_over_time(id, view, now, &over_time))
        (keys::table(&keys, &live, now, id, may_change))
        (usage::requests(&requests, &of_requests))
        (money::payments(&payments, &of_payments))
    };
    Ok(layout::live(&customer.name, &caller, view.paused, content))
}

fn about(customer: &Customer) -> Markup {
    html! {
        p {
            (customer.email)
            @if !customer.company.is_empty() { " · " (customer.company) }
            " · customer " (customer.id)
            @if let Some(at) = customer.deleted_at {
                " · " span #deleted .status .failed { "deleted" } " on " (time(at))
            }
        }
    }
}

fn requests_over_time(
    id: i64,
    view: View,
    now: OffsetDateTime,
    over_time: &[PeriodTotals],
) -> Markup {
    html! {
        section #over-time {
            h2 { "Requests over time" }
            nav aria-label="Range" {
                @for range in [Range::Day, Range::Month] {
                    a href=(View { range, ..view }.path(id))
                        aria-current=[(range == view.range).then_some("true")] { (range.title()) }
                }
            }
            (chart::requests(view.range, now, over_time))
        }
    }
}
