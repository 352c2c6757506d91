//! Stripe's API: the four requests that are made of it.
//!
//! They are written out here, and answers are read for what is needed of them
//! alone, so that the generated crates need not be compiled and a field that
//! Stripe adds or drops breaks nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use ::stripe::{ApiErrorsCode, Client, ClientBuilder, IdempotentKeyError, StripeError};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use stripe_client_core::{IdempotencyKey, RequestBuilder, RequestStrategy, StripeMethod};
use time::macros::format_description;

use crate::store::outbox::{Content, Message};

/// How long one request may take; the client itself would wait forever.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest reason that is kept, in characters.
const LONGEST_REASON: usize = 300;

/// A client of Stripe.
#[derive(Debug)]
pub struct Stripe {
    client: Client,
}

/// Why a request did not do what it should.
#[derive(Debug)]
pub struct Failure {
    /// For people; holds no secret.
    pub reason: String,
    /// What may help.
    pub kind: Kind,
}

/// What may help against a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Time: it may pass.
    Passing,
    /// A customer made anew: Stripe has this one no more, since it was deleted there or
    /// the secret key is now of another account, or for real money.
    NoCustomer,
    /// Another address: Stripe takes this one for none.
    NoAddress,
    /// Somebody: Stripe understood the request and will refuse it again.
    Refused,
}

/// What an object at Stripe says of its origin.
#[derive(Serialize)]
struct Metadata<'a> {
    model_host_customer_id: i64,
    /// The message's key, by which it is found again.
    model_host_message: &'a str,
}

#[derive(Serialize)]
struct NewCustomer<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    email: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct NewInvoiceItem<'a> {
    customer: &'a str,
    amount: i64,
    currency: &'a str,
    description: String,
    metadata: Metadata<'a>,
}

/// The newest objects of one owner.
#[derive(Default, Serialize)]
struct Filter<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    /// The most there is.
    limit: u8,
}

#[derive(miniserde::Deserialize)]
struct Object {
    id: String,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(miniserde::Deserialize)]
struct List {
    data: Vec<Object>,
}

impl Stripe {
    /// A client with this key, of the API at `base` or of Stripe's own.
    ///
    /// # Errors
    /// When the key cannot be in a header, or the base is not a URL.
    pub fn new(key: &SecretString, base: Option<&str>) -> Result<Self, StripeError> {
        let mut builder = ClientBuilder::new(key.expose_secret()).timeout(TIMEOUT);
        if let Some(base) = base {
            // the client appends to it
            builder = builder.url(format!("{}/", base.trim_end_matches('/')));
        }
        let client = builder.build()?;
        Ok(Self { client })
    }

    /// Makes what a message says. Returns what Stripe calls it.
    ///
    /// # Errors
    /// When Stripe did not say that it was made; it may have been.
    pub async fn create(&self, message: &Message) -> Result<String, Failure> {
        let request = create_request(message);
        let key = idempotency_key(&request).map_err(|error| Failure {
            reason: error.to_string(),
            kind: Kind::Refused,
        })?;
        let made: Object = request
            .customize()
            .request_strategy(RequestStrategy::Idempotent(key))
            .send(&self.client)
            .await?;
        Ok(made.id)
    }

    /// Looks for what an earlier attempt at a message made.
    ///
    /// It is among the hundred newest of its owner: a customer has one message
    /// on its way at a time. A customer that was made without its address is not; if it
    /// is made twice, since Stripe forgot the key too, nothing is owed by the first.
    ///
    /// # Errors
    /// When Stripe gave no list.
    pub async fn find(&self, message: &Message) -> Result<Option<String>, Failure> {
        let limit = 100;
        let (path, filter) = match &message.content {
            Content::Customer { email, .. } => {
                let email = Some(email.as_str());
                (
                    "/customers",
                    Filter {
                        email,
                        limit,
                        ..Filter::default()
                    },
                )
            }
            Content::Usage { stripe_id, .. } => {
                let customer = Some(stripe_id.as_str());
                (
                    "/invoiceitems",
                    Filter {
                        customer,
                        limit,
                        ..Filter::default()
                    },
                )
            }
        };
        let list: List = RequestBuilder::new(StripeMethod::Get, path)
            .query(&filter)
            .customize()
            .send(&self.client)
            .await?;
        let found = list.data.into_iter().find(|object| {
            let metadata = object.metadata.as_ref();
            metadata.and_then(|metadata| metadata.get("model_host_message")) == Some(&message.key)
        });
        Ok(found.map(|object| object.id))
    }
}

/// Of all that is sent, the message's own key included: Stripe refuses another request
/// with the same key, and a customer may be renamed between two attempts.
fn idempotency_key(request: &RequestBuilder) -> Result<IdempotencyKey, IdempotentKeyError> {
    let digest = Sha256::digest(request.body.as_deref().unwrap_or_default());
    let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    IdempotencyKey::new(text)
}

fn create_request(message: &Message) -> RequestBuilder {
    let metadata = Metadata {
        model_host_customer_id: message.customer_id,
        model_host_message: &message.key,
    };
    let post = |path| RequestBuilder::new(StripeMethod::Post, path);
    match &message.content {
        Content::Customer {
            name,
            email,
            company,
        } => post("/customers").form(&NewCustomer {
            name,
            email,
            description: company,
            metadata,
        }),
        Content::Usage {
            stripe_id,
            amount,
            from,
            until,
        } => {
            let minute = format_description!("[year]-[month]-[day] [hour]:[minute]");
            let [from, until] = [from, until].map(|time| time.format(&minute).unwrap_or_default());
            post("/invoiceitems").form(&NewInvoiceItem {
                customer: stripe_id,
                amount: amount.cents().0,
                currency: "usd",
                description: format!("API usage from {from} to {until} UTC"),
                metadata,
            })
        }
    }
}

impl From<StripeError> for Failure {
    fn from(error: StripeError) -> Self {
        let (mut reason, kind) = match error {
            // says a part of the key
            StripeError::Stripe(_, 401) => (
                "status 401: the secret key is not valid".to_owned(),
                Kind::Passing,
            ),
            StripeError::Stripe(error, status) => {
                let message = error.message.unwrap_or_default();
                let kind = match (error.code, error.param.as_deref()) {
                    _ if !is_refusal(status) => Kind::Passing,
                    // what is owed is not to be told to a sandbox, by a key that is there by mistake
                    _ if message.contains("exists in live mode") => Kind::Refused,
                    (Some(ApiErrorsCode::ResourceMissing), Some("customer")) => Kind::NoCustomer,
                    (Some(ApiErrorsCode::EmailInvalid), _) => Kind::NoAddress,
                    _ => Kind::Refused,
                };
                (format!("status {status}: {message}"), kind)
            }
            other => (other.to_string(), Kind::Passing),
        };
        if let Some((end, _)) = reason.char_indices().nth(LONGEST_REASON) {
            reason.truncate(end);
        }
        Self { reason, kind }
    }
}

/// Whether a status speaks of the request rather than of the key, of another
/// request at the same time, or of too many of them.
fn is_refusal(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 401 | 403 | 408 | 409 | 424 | 429)
}
