//! Who calls, as types: a handler that takes one of these has said who may.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, header, request::Parts};

use super::AppState;
use super::client::ClientAddress;
use super::envelope::RequestId;
use super::error::ApiError;
use crate::keys::Keys;
use crate::store::audit::Actor;
use crate::store::keys::{Key, Scope};

/// The operator, as the audit log names them.
#[derive(Debug)]
pub struct Admin(pub Actor);

/// A customer, by one of its keys, that may ask models.
#[derive(Debug)]
pub struct Customer(pub Arc<Key>);

/// Either.
#[derive(Debug)]
pub enum Caller {
    /// The operator.
    Admin,
    /// A customer, by one of its keys.
    Customer(Arc<Key>),
}

/// Makes a type of those who may read something: the operator, and customers by
/// a key with this scope.
macro_rules! reader {
    ($(#[$doc:meta])* $name:ident: $scope:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(pub Caller);

        impl FromRequestParts<AppState> for $name {
            type Rejection = ApiError;

            async fn from_request_parts(
                parts: &mut Parts,
                state: &AppState,
            ) -> Result<Self, ApiError> {
                let caller = caller(parts, state).await?;
                caller.must_have($scope)?;
                Ok(Self(caller))
            }
        }
    };
}

reader! {
    /// Whoever may see the models on offer.
    ModelsReader: Scope::ModelsRead
}
reader! {
    /// Whoever may see what was used.
    UsageReader: Scope::UsageRead
}
reader! {
    /// Whoever may see keys.
    KeysReader: Scope::KeysRead
}
reader! {
    /// Whoever may see a customer.
    CustomerReader: Scope::CustomerRead
}

impl Caller {
    /// The customer whose things are asked for: the caller itself, or for the
    /// operator the one named.
    ///
    /// # Errors
    /// 404 when a customer names another: it does not learn whether there is one.
    pub fn scope(&self, asked: Option<i64>) -> Result<Option<i64>, ApiError> {
        match (self, asked) {
            (Self::Admin, asked) => Ok(asked),
            (Self::Customer(key), Some(asked)) if asked != key.customer_id => {
                Err(ApiError::not_found("customer"))
            }
            (Self::Customer(key), _) => Ok(Some(key.customer_id)),
        }
    }

    /// Checks that the caller may do what the scope is for. The operator may.
    ///
    /// # Errors
    /// 403 when it is a customer's key without the scope.
    pub fn must_have(&self, scope: Scope) -> Result<(), ApiError> {
        match self {
            Self::Customer(key) if !key.scopes.contains(&scope) => {
                Err(ApiError::missing_scope(scope.as_str()))
            }
            Self::Customer(_) | Self::Admin => Ok(()),
        }
    }

    /// Whether this caller may see the customer's things.
    pub fn may_see(&self, customer_id: i64) -> bool {
        match self {
            Self::Admin => true,
            Self::Customer(key) => key.customer_id == customer_id,
        }
    }
}

/// Who sent this request, by the key in its headers.
///
/// # Errors
/// When no key came, or one that opens nothing.
pub async fn caller(parts: &mut Parts, state: &AppState) -> Result<Caller, ApiError> {
    let Ok(ClientAddress(client)) = ClientAddress::from_request_parts(parts, state).await;
    let customer = async |key| {
        let key = state.keys.authenticate(key, client).await?;
        Ok(Caller::Customer(key))
    };
    if let Some(key) = text(&parts.headers, "x-admin-key") {
        state.keys.authenticate_admin(key).await?;
        return Ok(Caller::Admin);
    }
    if let Some(key) = text(&parts.headers, "x-api-key") {
        return customer(key).await;
    }
    match bearer(&parts.headers) {
        Some(key) if Keys::is_customers(key) => customer(key).await,
        Some(key) => {
            state.keys.authenticate_admin(key).await?;
            Ok(Caller::Admin)
        }
        None => Err(ApiError::no_key(
            "a key as X-API-Key, X-Admin-Key or Authorization: Bearer",
        )),
    }
}

/// The operator, who sends this request.
pub async fn actor(parts: &mut Parts, state: &AppState) -> Actor {
    let Ok(ClientAddress(client)) = ClientAddress::from_request_parts(parts, state).await;
    let id = parts.extensions.get::<RequestId>();
    Actor::AdminKey {
        request_id: id.map_or_else(String::new, |RequestId(id)| id.clone()),
        client,
    }
}

impl FromRequestParts<AppState> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match caller(parts, state).await? {
            Caller::Admin => Ok(Self(actor(parts, state).await)),
            Caller::Customer(_) => Err(ApiError::wrong_kind_of_key("the admin key")),
        }
    }
}

impl FromRequestParts<AppState> for Customer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = caller(parts, state).await?;
        caller.must_have(Scope::Generate)?;
        match caller {
            Caller::Customer(key) => Ok(Self(key)),
            Caller::Admin => Err(ApiError::wrong_kind_of_key("a customer's key")),
        }
    }
}

/// Whether a key came in a header, valid or not.
pub fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key("x-admin-key")
        || headers.contains_key("x-api-key")
        || bearer(headers).is_some()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // a header that is not text is a key that nobody has
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or_default().trim())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers, header::AUTHORIZATION.as_str())?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}
