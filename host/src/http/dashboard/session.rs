//! Who looks at a page: the cookie that remembers a sign-in.
//!
//! The cookie says who and until when, signed with a key that a new admin key
//! replaces. Nothing is kept here: signing out deletes the cookie, and what
//! ends sessions for certain is turning the key off, or rotating it: a session
//! lasts no longer than the very text that it began with.

use std::fmt;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, Method, request::Parts};
use axum::response::{IntoResponse, Redirect, Response};
use axum_extra::extract::cookie::{Cookie, Key, SameSite, SignedCookieJar};
use time::{Duration, OffsetDateTime};

use super::login;
use crate::http::AppState;
use crate::http::auth::{self, Caller};
use crate::http::client::ClientAddress;
use crate::http::error::ApiError;
use crate::store::audit::Actor;
use crate::store::keys::Scope;

const COOKIE: &str = "model-host-session";
const LENGTH: Duration = Duration::hours(12);
/// What the pages of a customer show.
const SHOWN: [Scope; 3] = [Scope::CustomerRead, Scope::UsageRead, Scope::KeysRead];

/// Whom a session is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The operator.
    Admin,
    /// Whoever signed in with the key that has this public part.
    Key(String),
}

/// What the cookie says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    who: Who,
    /// Seconds since 1970.
    expires: i64,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Admin => write!(f, "{}.admin", self.expires),
            Who::Key(public_id) => write!(f, "{}.key.{public_id}", self.expires),
        }
    }
}

impl FromStr for Session {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (expires, who) = text.split_once('.').ok_or(())?;
        let who = match who.split_once('.') {
            None if who == "admin" => Who::Admin,
            Some(("key", public_id)) if !public_id.is_empty() => Who::Key(public_id.to_owned()),
            _ => return Err(()),
        };
        let expires = expires.parse().map_err(|_| ())?;
        Ok(Self { who, expires })
    }
}

/// The cookies of a request, with a session added.
///
/// # Errors
/// When the database fails.
pub async fn begin(
    state: &AppState,
    headers: &HeaderMap,
    who: Who,
) -> Result<SignedCookieJar, ApiError> {
    let expires = (state.clock.now() + LENGTH).unix_timestamp();
    let cookie = Cookie::build((COOKIE, Session { who, expires }.to_string()))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .max_age(LENGTH)
        // the server itself speaks plain HTTP, where a browser would drop a
        // secure cookie; a proxy that ends TLS says so
        .secure(came_by_https(headers));
    Ok(jar(state, headers).await?.add(cookie))
}

/// The cookies of a request, without a session.
///
/// # Errors
/// When the database fails.
pub async fn end(state: &AppState, headers: &HeaderMap) -> Result<SignedCookieJar, ApiError> {
    let cookie = Cookie::build((COOKIE, "")).path("/");
    Ok(jar(state, headers).await?.remove(cookie))
}

async fn jar(state: &AppState, headers: &HeaderMap) -> Result<SignedCookieJar, ApiError> {
    let key = state.keys.derive("session").await?;
    // the second half is for encryption, which a signed cookie has no use for
    let key = Key::from(&key.repeat(2));
    Ok(SignedCookieJar::from_headers(headers, key))
}

fn came_by_https(headers: &HeaderMap) -> bool {
    headers
        .get("x-forwarded-proto")
        .is_some_and(|scheme| scheme == "https")
}

/// The caller that the request's cookie stands for, if it still may.
async fn resume(parts: &mut Parts, state: &AppState) -> Result<Option<Caller>, ApiError> {
    let Some(cookie) = jar(state, &parts.headers).await?.get(COOKIE) else {
        return Ok(None);
    };
    let Some(who) = whose(cookie.value(), state.clock.now()) else {
        return Ok(None);
    };
    match who {
        Who::Admin => Ok(Some(Caller::Admin)),
        Who::Key(public_id) => {
            let Ok(ClientAddress(client)) = ClientAddress::from_request_parts(parts, state).await;
            match state.keys.recall(&public_id, client).await {
                Ok(key) => Ok(Some(Caller::Customer(key))),
                Err(error) if error.is_refusal() => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
    }
}

fn whose(cookie: &str, now: OffsetDateTime) -> Option<Who> {
    let session: Session = cookie.parse().ok()?;
    (now.unix_timestamp() < session.expires).then_some(session.who)
}

/// Who looks at the page: by a key in a header, as with the API, or by having
/// signed in.
#[derive(Debug)]
pub struct Viewer(pub Caller);

/// The operator looks at the page; as the audit log names them.
#[derive(Debug)]
pub struct AdminViewer(pub Actor);

/// Why nobody looks at the page.
#[derive(Debug)]
pub enum Rejection {
    /// Somebody has to sign in first, and comes back here then.
    SignIn(Option<String>),
    /// The key does not do.
    Error(ApiError),
}

impl From<ApiError> for Rejection {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        match self {
            Self::SignIn(next) => Redirect::to(&login::path(next.as_deref())).into_response(),
            Self::Error(error) => error.into_response(),
        }
    }
}

impl FromRequestParts<AppState> for Viewer {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        let caller = if auth::has_key(&parts.headers) {
            auth::caller(parts, state).await?
        } else {
            let resumed = resume(parts, state).await?;
            // a form that was sent too late is not sent again
            resumed.ok_or_else(|| {
                let is_page = parts.method == Method::GET;
                // alone: over HTTP/2 the address has the server too
                let page = parts.uri.path_and_query().map(ToString::to_string);
                Rejection::SignIn(page.filter(|_| is_page))
            })?
        };
        for scope in SHOWN {
            caller.must_have(scope)?;
        }
        Ok(Self(caller))
    }
}

impl FromRequestParts<AppState> for AdminViewer {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        match Viewer::from_request_parts(parts, state).await?.0 {
            Caller::Admin => Ok(Self(auth::actor(parts, state).await)),
            Caller::Customer(_) => Err(ApiError::wrong_kind_of_key("the admin key").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_session_reads_back_until_it_expires() {
        let now = datetime!(2026-01-01 12:00 UTC);
        for who in [Who::Admin, Who::Key("a1B2c3D4".to_owned())] {
            let expires = (now + LENGTH).unix_timestamp();
            let session = Session {
                who: who.clone(),
                expires,
            };
            let cookie = session.to_string();
            assert_eq!(whose(&cookie, now), Some(who.clone()));
            assert_eq!(whose(&cookie, now + LENGTH - Duration::SECOND), Some(who));
            assert_eq!(whose(&cookie, now + LENGTH), None);
        }
        for text in [
            "",
            "admin",
            "9999999999",
            "9999999999.key.",
            "9999999999.root",
        ] {
            assert_eq!(whose(text, now), None, "{text}");
        }
    }
}
