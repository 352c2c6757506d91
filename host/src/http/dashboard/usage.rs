//! What was used, as parts of pages: sums, sums by model, single requests.

use maud::{Markup, html};

use super::figures::{count, latency, time};
use super::layout;
use crate::keys::prefix;
use crate::store::usage::{ModelTotals, Totals, WithKey};

/// The sums of all models together.
pub fn totals(by_model: &[ModelTotals]) -> Markup {
    let Totals {
        requests,
        prompt_tokens,
        completion_tokens,
        cost,
    } = by_model.iter().map(|model| &model.totals).sum();
    html! {
        dl .totals {
            div { dt { "Requests" } dd #total-requests { (count(requests)) } }
            div {
                dt { "Tokens" }
                dd #total-tokens { (count(prompt_tokens + completion_tokens)) }
                dd .note { (count(prompt_tokens)) " in, " (count(completion_tokens)) " out" }
            }
            div { dt { "Cost" } dd #total-cost { (cost) } }
        }
    }
}

/// A row for each model.
pub fn by_model(by_model: &[ModelTotals]) -> Markup {
    html! {
        section #usage {
            h2 { "Usage by model" }
            @if by_model.is_empty() {
                p .note { "Nothing was used." }
            } @else {
                div .scroll { table {
                    thead { tr {
                        th { "Model" }
                        th .figure { "Requests" }
                        th .figure { "Tokens in" }
                        th .figure { "Tokens out" }
                        th .figure { "Cost" }
                    } }
                    tbody { @for ModelTotals { model_id, model_name, totals } in by_model { tr {
                        td { (model_name) " " span .note { "#" (model_id) } }
                        (sums(totals))
                    } } }
                } }
            }
        }
    }
}

/// Cells of sums: requests, tokens in and out, cost.
pub fn sums(totals: &Totals) -> Markup {
    html! {
        td .figure { (count(totals.requests)) }
        td .figure { (count(totals.prompt_tokens)) }
        td .figure { (count(totals.completion_tokens)) }
        td .figure { (totals.cost) }
    }
}

/// A row for each request.
pub fn requests(rows: &[WithKey], turning: &layout::Turning) -> Markup {
    html! {
        section #requests {
            h2 { (turning.title("requests")) }
            @if rows.is_empty() {
                p .note { "No request." }
            } @else {
                div .scroll { table {
                    thead { tr {
                        th { "Time" }
                        th { "Request" }
                        th { "Key" }
                        th { "Model" }
                        th { "Status" }
                        th .figure { "Tokens" }
                        th .figure { "Cost" }
                        th .figure { "Latency" }
                    } }
                    tbody { @for row in rows { (request(row)) } }
                } }
            }
            (turning.links("requests"))
        }
    }
}

fn request(with_key: &WithKey) -> Markup {
    let usage = &with_key.row.usage;
    let tokens = i64::from(usage.prompt_tokens) + i64::from(usage.completion_tokens);
    html! {
        tr {
            td .time { (time(usage.created_at)) }
            td { code { (usage.request_id) } }
            td { (with_key.key_name) " " code { (prefix(&with_key.public_id)) "_…" } }
            td { (usage.model_name) }
            td {
                span class={ "status " (usage.status.as_str()) } { (usage.status.as_str()) }
                @if let Some(code) = &usage.error_code { " " code { (code) } }
            }
            td .figure {
                @if usage.tokens_estimated { abbr title="guessed, not counted" { "≈" } " " }
                (count(tokens))
            }
            td .figure { (usage.cost) }
            td .figure { (latency(usage.latency_ms)) }
        }
    }
}
