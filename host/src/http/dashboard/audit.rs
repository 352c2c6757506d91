//! `GET /dashboard/audit`: what was done with the operator's authority, the
//! latest first.

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::figures::time;
use super::layout;
use super::session::AdminViewer;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::json::Query;
use crate::store::audit::Recorded;

/// Acts on a page.
const PAGE: u32 = 100;

/// Which part of the log.
#[derive(Debug, Deserialize)]
pub struct View {
    /// Earlier than the act of this number.
    before: Option<i64>,
}

/// `GET /dashboard/audit`
pub async fn show(
    _: AdminViewer,
    State(AppState { store, .. }): State<AppState>,
    Query(view): Query<View>,
) -> Result<Markup, ApiError> {
    let acts = store.latest_acts(view.before.unwrap_or(i64::MAX), PAGE);
    let acts = acts.await?;
    let is_full = acts.len() >= PAGE as usize;
    let content = html! {
        h1 { "Audit log" }
        section #acts {
            @if acts.is_empty() {
                p .note { "Nothing was done before that." }
            } @else {
                div .scroll { table {
                    thead { tr {
                        th .figure { "#" }
                        th { "Time" }
                        th { "Who" }
                        th { "What" }
                        th { "Object" }
                        th { "Before and after" }
                    } }
                    tbody { @for act in &acts { (row(act)) } }
                } }
            }
        }
        @if let (true, Some(last)) = (is_full, acts.last()) {
            p { a href={ "/dashboard/audit?before=" (last.id) } { "Earlier acts" } }
        }
    };
    Ok(layout::page("Audit log", Some(&Caller::Admin), content))
}

fn row(act: &Recorded) -> Markup {
    html! {
        tr {
            td .figure { (act.id) }
            td .time { (time(act.at)) }
            td {
                (act.actor.replace('_', " "))
                @if let Some(client) = &act.client { p .note { "from " (client) } }
            }
            td { (act.action) }
            td { (act.object) }
            td {
                @if act.before.is_some() || act.after.is_some() {
                    details {
                        summary { "Show" }
                        (state("Before", act.before.as_ref()))
                        (state("After", act.after.as_ref()))
                    }
                }
            }
        }
    }
}

fn state(title: &str, value: Option<&Value>) -> Markup {
    html! {
        @if let Some(value) = value {
            p .note { (title) }
            pre { (format!("{value:#}")) }
        }
    }
}
