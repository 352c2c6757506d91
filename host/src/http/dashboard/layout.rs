//! What all pages have: the frame, the look, and the page of an error.

use maud::{DOCTYPE, Markup, html};

use crate::http::auth::Caller;
use crate::http::error::ApiError;

/// Seconds after which a page with figures shows newer ones.
pub const REFRESH: u32 = 30;

/// A page; with somebody signed in it has the way out.
pub fn page(title: &str, caller: Option<&Caller>, content: Markup) -> Markup {
    frame(title, caller, None, content)
}

/// A page that shows newer figures by itself, unless it is paused. Whoever has
/// something to type gets it on a page of its own, which stays as it is.
pub fn live(title: &str, caller: &Caller, is_paused: bool, content: Markup) -> Markup {
    let refresh = (!is_paused).then_some(REFRESH);
    frame(title, Some(caller), refresh, content)
}

/// Of a list that shows its latest rows first: where earlier ones are, and from those the
/// way back.
#[derive(Debug)]
pub struct Turning {
    /// The page with the rows before these, if there may be any.
    pub earlier: Option<String>,
    /// The page with the latest, if these are not.
    pub latest: Option<String>,
}

impl Turning {
    /// What the rows of this kind are called.
    pub fn title(&self, kind: &str) -> String {
        let which = match self.latest {
            None => "Latest",
            Some(_) => "Earlier",
        };
        format!("{which} {kind}")
    }

    /// The links, to the list itself.
    pub fn links(&self, kind: &str) -> Markup {
        html! {
            @if self.earlier.is_some() || self.latest.is_some() {
                p {
                    @if let Some(path) = &self.latest {
                        a href={ (path) "#" (kind) } { "Latest " (kind) } " "
                    }
                    @if let Some(path) = &self.earlier {
                        a href={ (path) "#" (kind) } { "Earlier " (kind) }
                    }
                }
            }
        }
    }
}

fn frame(title: &str, caller: Option<&Caller>, refresh: Option<u32>, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(seconds) = refresh {
                    meta http-equiv="refresh" content=(seconds);
                }
                title { (title) " · model-host" }
                link rel="stylesheet" href="/dashboard/style.css";
                // none, rather than a request for /favicon.ico
                link rel="icon" href="data:,";
            }
            body {
                header {
                    a .brand href="/dashboard" { "model-host" }
                    @if let Some(caller) = caller {
                        @if let Caller::Admin = caller { a href="/dashboard/audit" { "Audit log" } }
                        span .who { (who(caller)) }
                        form method="post" action="/logout" { button .quiet { "Sign out" } }
                    }
                }
                main { (content) }
            }
        }
    }
}

fn who(caller: &Caller) -> &str {
    match caller {
        Caller::Admin => "admin",
        Caller::Customer(key) => &key.name,
    }
}

/// The page of an error.
pub fn error(error: &ApiError, request_id: &str) -> Markup {
    let status = error.status();
    let title = status.canonical_reason().unwrap_or("Error");
    let content = html! {
        h1 { (title) }
        p { (error.message()) "." }
        p .note { "Request " code { (request_id) } }
        p { a href="/dashboard" { "To the dashboard" } " · " a href="/login" { "Sign in" } }
    };
    page(title, None, content)
}
