//! `GET /dashboard`: the operator's view of everything. A customer is sent to
//! its own page.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::figures::{count, time};
use super::month::{self, Month};
use super::session::Viewer;
use super::{layout, usage};
use crate::http::AppState;
use crate::http::api::models::Shown;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::json::Query;
use crate::models::Live;
use crate::money::NanoDollars;
use crate::store::customers::Customer;
use crate::store::usage::Totals;

/// Customers on a page.
const PAGE: u32 = 100;

/// Which part, and whether it stays as it is.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct View {
    after: i64,
    /// The customers that were deleted, instead of those that there are.
    deleted: bool,
    month: Month,
    paused: bool,
}

impl View {
    fn path(self) -> String {
        let paused = if self.paused { "&paused=true" } else { "" };
        let deleted = if self.deleted { "&deleted=true" } else { "" };
        format!(
            "/dashboard?after={}&month={}{deleted}{paused}",
            self.after,
            self.month.as_str()
        )
    }
}

/// `GET /dashboard`
pub async fn show(
    Viewer(caller): Viewer,
    State(state): State<AppState>,
    Query(view): Query<View>,
) -> Result<Response, ApiError> {
    if let Caller::Customer(key) = &caller {
        return Ok(Redirect::to(&format!("/dashboard/{}", key.customer_id)).into_response());
    }
    let (store, now) = (&state.store, state.clock.now());
    let span = view.month.span(now);
    // one more than is shown tells whether there are more
    let mut rows = store.customers(view.after, PAGE + 1, view.deleted).await?;
    let is_last = rows.len() <= PAGE as usize;
    rows.truncate(PAGE as usize);
    let used = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => {
            let shown = first.id..=last.id;
            store.usage_by_customer(shown, view.deleted, span).await?
        }
        _ => HashMap::new(),
    };
    // below the last of the others, so that all of them are what is used
    let mut deleted = None;
    if is_last
        && !view.deleted
        && let Some(balance) = store.balance_of_deleted().await?
    {
        deleted = Some((store.usage_of_deleted(span).await?, balance));
    }
    let by_model = store.usage_by_model(None, span).await?;
    let content = html! {
        h1 { "Dashboard" }
        p .note {
            "As of " (time(now)) ". "
            @let other = View { paused: !view.paused, ..view }.path();
            @if view.paused {
                a href=(other) { "Keep it up to date" }
            } @else {
                "Renewed every " (layout::REFRESH) " seconds: " a href=(other) { "pause" }
            }
            "."
        }
        @if let Some(error) = state.reload.error() {
            div .box .problem #configuration-error role="alert" {
                p { "The configuration file is not what runs:" }
                pre { (error) }
            }
        }
        (month::choice(view.month, now, |month| View { month, ..view }.path()))
        (usage::totals(&by_model))
        (customers(view, &rows, &used, deleted.as_ref()))
        @if let (false, Some(last)) = (is_last, rows.last()) {
            p { a href=(View { after: last.id, ..view }.path()) { "More customers" } }
        }
        (models(&state.generator.live().load()))
        (usage::by_model(&by_model))
    };
    Ok(layout::live("Dashboard", &caller, view.paused, content).into_response())
}

/// A row for each customer, and one for the usage and balance of all that were deleted.
fn customers(
    view: View,
    rows: &[Customer],
    used: &HashMap<i64, Totals>,
    deleted: Option<&(Totals, NanoDollars)>,
) -> Markup {
    let nothing = Totals::default();
    let others = View {
        after: 0,
        deleted: !view.deleted,
        ..view
    };
    html! {
        section #customers {
            @if view.deleted {
                h2 { "Deleted customers" }
                p .note { a href=(others.path()) { "Those that there are" } }
            } @else {
                h2 { "Customers" }
            }
            @if rows.is_empty() && deleted.is_none() {
                @if view.deleted {
                    p .note { "None." }
                } @else {
                    p .note { "No customer yet: " code { "POST /customers" } " creates one." }
                }
            } @else {
                div .scroll { table {
                    thead { tr {
                        th .figure { "#" }
                        th { "Name" }
                        th { "Email" }
                        th .figure { "Requests" }
                        th .figure { "Tokens in" }
                        th .figure { "Tokens out" }
                        th .figure { "Cost" }
                        th .figure { "Balance" }
                    } }
                    tbody {
                        @for customer in rows { tr {
                            td .figure { (customer.id) }
                            td {
                                a href={ "/dashboard/" (customer.id) "?month=" (view.month.as_str()) } {
                                    (customer.name)
                                }
                            }
                            td { (customer.email) }
                            (usage::sums(used.get(&customer.id).unwrap_or(&nothing)))
                            td .figure { (customer.balance) }
                        } }
                        @if let Some((used, balance)) = deleted { tr #deleted {
                            td {}
                            td { a href=(others.path()) { "Deleted customers" } }
                            td {}
                            (usage::sums(used))
                            td .figure { (balance) }
                        } }
                    }
                } }
            }
        }
    }
}

fn models(live: &Live) -> Markup {
    html! {
        section #models {
            h2 { "Models" }
            div .scroll { table {
                thead { tr {
                    th .figure { "#" }
                    th { "Name" }
                    th { "Status" }
                    th { "Plugin" }
                    th { "Source" }
                    th .figure { "Context" }
                    th .figure { "Price, in / out" }
                } }
                tbody { @for model in live.models() { (model_row(&Shown::from(&**model))) } }
            } }
            p .note { "Prices are for a million tokens." }
        }
    }
}

fn model_row(model: &Shown) -> Markup {
    html! {
        tr {
            td .figure { (model.id) }
            td { (model.name) }
            td {
                span class={ "status " (model.status) } { (model.status.replace('_', " ")) }
                @if let Some(reason) = &model.reason { p .problem { (reason) } }
                @if let Some(problem) = &model.problem {
                    p .problem { "its latest configuration does not run: " (problem) }
                }
            }
            td {
                @if let Some(plugin) = &model.plugin { (plugin) }
                @if let Some(digest) = &model.digest {
                    details { summary { "SHA-256" } code .digest { (digest) } }
                }
            }
            td { @if let Some(source) = &model.source { (source) } }
            td .figure { @if let Some(tokens) = model.context_window { (count(tokens)) } }
            td .figure {
                (model.price_per_million.prompt) " / " (model.price_per_million.completion)
            }
        }
    }
}
