//! `/login` and `/logout`. A key is all there is to sign in with; its 190 bits
//! need no lock-out.

use std::net::IpAddr;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::form::Form;
use super::session::Who;
use super::{layout, session};
use crate::http::AppState;
use crate::http::client::ClientAddress;
use crate::http::envelope::RequestId;
use crate::http::error::ApiError;
use crate::http::json::Query;
use crate::keys::{self, Keys};
use crate::store::audit::{Act, Actor, Object};

/// Query of `GET /login`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Back {
    next: String,
}

/// Form of `POST /login`.
#[derive(Debug, Deserialize)]
pub struct SignIn {
    key: SecretString,
    #[serde(default)]
    next: String,
}

/// The path of the sign-in that leads back to `next`.
pub fn path(next: Option<&str>) -> String {
    next.map_or_else(
        || "/login".to_owned(),
        |next| {
            let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
            format!("/login?next={next}")
        },
    )
}

/// `GET /login`
pub async fn show(Query(back): Query<Back>) -> Markup {
    page(&back.next, None)
}

/// `POST /login`: takes the admin key or a customer's.
pub async fn sign_in(
    State(state): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    ClientAddress(client): ClientAddress,
    headers: HeaderMap,
    Form(form): Form<SignIn>,
) -> Result<Response, ApiError> {
    let key = form.key.expose_secret().trim();
    let who = match authenticate(&state.keys, key, client).await {
        Ok(who) => who,
        Err(error) if error.is_refusal() => {
            let page = page(&form.next, Some(&error.to_string()));
            return Ok((StatusCode::UNAUTHORIZED, page).into_response());
        }
        Err(error) => return Err(error.into()),
    };
    if who == Who::Admin {
        let actor = Actor::AdminKey { request_id, client };
        let act = Act {
            action: "dashboard.signed_in",
            object: Object::Dashboard,
            before: None,
            after: None,
        };
        state.store.record(&actor, act, state.clock.now()).await?;
    }
    let jar = session::begin(&state, &headers, who).await?;
    Ok((jar, Redirect::to(local(&form.next))).into_response())
}

/// `POST /logout`
pub async fn sign_out(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let jar = session::end(&state, &headers).await?;
    Ok((jar, Redirect::to("/login")).into_response())
}

async fn authenticate(keys: &Keys, key: &str, client: IpAddr) -> Result<Who, keys::Error> {
    if Keys::is_customers(key) {
        keys.authenticate(key, client).await?;
        let public_id = Keys::public_id(key).unwrap_or_default();
        Ok(Who::Key(public_id.to_owned()))
    } else {
        keys.authenticate_admin(key).await?;
        Ok(Who::Admin)
    }
}

/// Where to go next: a page of ours, whatever the link said.
fn local(next: &str) -> &str {
    let is_ours = next.starts_with("/dashboard") && next.parse::<Uri>().is_ok();
    if is_ours { next } else { "/dashboard" }
}

fn page(next: &str, problem: Option<&str>) -> Markup {
    let form = html! {
        h1 { "Sign in" }
        form .box method="post" action="/login" {
            input type="hidden" name="next" value=(next);
            label for="key" { "Admin key, or a customer's API key" }
            // a password for password managers, which then offer to keep it
            input #key type="password" name="key" required autofocus
                autocomplete="current-password" aria-describedby=[problem.map(|_| "problem")];
            @if let Some(problem) = problem {
                p #problem .problem role="alert" { (problem) }
            }
            button { "Sign in" }
        }
    };
    layout::page("Sign in", None, form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_in_leads_to_our_own_pages_alone() {
        for ours in [
            "/dashboard",
            "/dashboard/7",
            "/dashboard/7?range=month&paused=true",
        ] {
            assert_eq!(local(ours), ours);
        }
        for other in [
            "",
            "//evil.example",
            "https://evil.example/dashboard",
            "/\\evil.example",
            "/dashboard\r\nx: y",
            "javascript:alert(1)",
        ] {
            assert_eq!(local(other), "/dashboard", "{other}");
        }
        assert_eq!(path(None), "/login");
        let next = "/dashboard/7?range=day&paused=true";
        assert_eq!(
            path(Some(next)),
            "/login?next=%2Fdashboard%2F7%3Frange%3Dday%26paused%3Dtrue"
        );
    }
}
