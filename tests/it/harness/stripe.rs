//! Stripe, twice: localstripe, which nobody here wrote, and a fake that fails
//! as it is told.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::eventually;

/// The key that every test's server has.
pub const STRIPE_KEY: &str = "sk_test_a_secret_that_nobody_logs";

/// A port that nothing listens on, and that nothing will until it is asked to:
/// below those that the system gives away.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // far apart for two test processes at the same time
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    let mut ports = (0..100).map(|_| first + NEXT.fetch_add(1, Ordering::Relaxed) % 100);
    ports
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a port")
}

/// A running localstripe; it is killed when the test ends.
#[derive(Debug)]
pub struct LocalStripe {
    child: Child,
    url: String,
}

impl LocalStripe {
    /// Starts one that knows nothing, and waits until it answers.
    #[expect(
        clippy::disallowed_methods,
        reason = "tests/run says where it installed localstripe"
    )]
    pub async fn start(port: u16) -> Self {
        let program = std::env::var("MODEL_HOST_TEST_LOCALSTRIPE")
            .expect("MODEL_HOST_TEST_LOCALSTRIPE is not set: run the tests by tests/run");
        let child = Command::new(program)
            .args(["--from-scratch", "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("localstripe starts");
        let url = format!("http://127.0.0.1:{port}");
        let mut this = Self { child, url };
        eventually("localstripe answers", async || {
            reqwest::get(this.url()).await.is_ok()
        })
        .await;
        let ended = this.child.try_wait().expect("a child");
        assert!(ended.is_none(), "localstripe ended with {ended:?}");
        this
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// All of its customers.
    pub async fn customers(&self) -> Vec<Value> {
        self.list("customers?limit=100").await
    }

    /// A customer's invoice items.
    pub async fn invoice_items(&self, customer: &str) -> Vec<Value> {
        self.list(&format!("invoiceitems?limit=1000&customer={customer}"))
            .await
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        let request = reqwest::Client::new().get(format!("{}/v1/{path}", self.url));
        let response = request.bearer_auth(STRIPE_KEY).send().await;
        let list: Value = response
            .expect("an answer")
            .json()
            .await
            .expect("a JSON body");
        assert_eq!(list["has_more"], false, "{list}");
        list["data"].as_array().expect("a list").clone()
    }
}

impl Drop for LocalStripe {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What the fake does with a request to make something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Makes it and says so; once for a key.
    Work,
    /// Answers 500 and makes nothing.
    Fail,
    /// Answers 400 to requests about the customer with this name, and works for others.
    Refuse(&'static str),
    /// Makes customers, and then has none of them.
    Disown,
    /// Has none of the customers, as a test key has none that a live one made.
    Sandbox,
    /// Makes it and cuts the connection in the middle of the answer.
    MakeAndCut,
    /// Makes nothing and never answers.
    Stall,
    /// Makes it and never answers.
    MakeAndStall,
}

/// A request to make something, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `customers` or `invoiceitems`.
    pub path: String,
    /// Its idempotency key.
    pub key: String,
    /// The form.
    pub form: Vec<(String, String)>,
}

#[derive(Debug)]
struct Inside {
    mood: Mood,
    is_blind: bool,
    asked: Vec<Asked>,
    /// The first request with a key, as Stripe keeps it: there can be no other.
    first: HashMap<String, Asked>,
    /// What was made by key.
    answers: HashMap<String, Value>,
    made: Vec<(String, Value)>,
    /// Customers that are no more.
    gone: HashSet<String>,
}

/// A running fake of Stripe.
#[derive(Clone, Debug)]
pub struct FakeStripe {
    inside: Arc<Mutex<Inside>>,
    url: String,
}

impl FakeStripe {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let inside = Inside {
            mood: Mood::Work,
            is_blind: false,
            asked: Vec::new(),
            first: HashMap::new(),
            answers: HashMap::new(),
            made: Vec::new(),
            gone: HashSet::new(),
        };
        let this = Self {
            inside: Arc::new(Mutex::new(inside)),
            url,
        };
        let router = Router::new()
            .route("/v1/{path}", get(list).post(make))
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no panic")
    }

    /// What it does from now on.
    pub fn mood(&self, mood: Mood) {
        self.inside().mood = mood;
    }

    /// Lets lists be empty from now on, as if what was made cannot be found yet.
    pub fn blind(&self) {
        self.inside().is_blind = true;
    }

    /// Lets there be none of the customers that were made until now, as if they were
    /// deleted or the secret key were of another account.
    pub fn forget(&self) {
        let customers = self.made("customers").into_iter();
        let ids = customers.filter_map(|made| made["id"].as_str().map(str::to_owned));
        self.inside().gone.extend(ids);
    }

    /// The requests to make something at this path.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        let inside = self.inside();
        let asked = inside.asked.iter().filter(|asked| asked.path == path);
        asked.cloned().collect()
    }

    /// What was made at this path.
    pub fn made(&self, path: &str) -> Vec<Value> {
        let inside = self.inside();
        let made = inside.made.iter().filter(|(of, _)| of == path);
        made.map(|(_, object)| object.clone()).collect()
    }
}

async fn list(
    State(stripe): State<FakeStripe>,
    Path(path): Path<String>,
    Query(filter): Query<HashMap<String, String>>,
) -> Response {
    if let Some(refusal) = stripe.inside().no_customer(&filter) {
        return refusal;
    }
    let mut found = stripe.made(&path);
    found.retain(|object| {
        let has = |field: &str| {
            filter
                .get(field)
                .is_none_or(|value| object[field] == *value)
        };
        let id = object["id"].as_str().expect("a text");
        has("customer") && has("email") && !stripe.inside().gone.contains(id)
    });
    if stripe.inside().is_blind {
        found.clear();
    }
    found.reverse();
    Json(json!({ "object": "list", "data": found, "has_more": false })).into_response()
}

async fn make(
    State(stripe): State<FakeStripe>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let bearer = headers["authorization"].to_str().expect("a text");
    assert_eq!(bearer, format!("Bearer {STRIPE_KEY}"));
    let key = headers["idempotency-key"].to_str().expect("a text");
    let asked = Asked {
        path: path.clone(),
        key: key.to_owned(),
        form: form_urlencoded::parse(&body).into_owned().collect(),
    };
    let mood = stripe.inside().mood;
    stripe.inside().asked.push(asked.clone());
    if !stripe.inside().is_the_first(&asked) {
        return problem(StatusCode::BAD_REQUEST, "idempotency_error");
    }
    let mentions = |name| {
        let inside = stripe.inside();
        let owner = inside.made.iter().find(|(_, made)| made["name"] == name);
        owner.is_some_and(|(_, made)| asked.form.iter().any(|(_, value)| made["id"] == *value))
    };
    match mood {
        Mood::Fail => return problem(StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
        Mood::Refuse(name) if mentions(name) => {
            return problem(StatusCode::BAD_REQUEST, "invalid_request_error");
        }
        Mood::Stall => std::future::pending().await,
        _ => {}
    }
    let form = asked.form.iter().cloned().collect();
    let refusal = stripe.inside().no_customer(&form);
    if let Some(refusal) = refusal.or_else(|| no_address(&form)) {
        return refusal;
    }
    let object = stripe.inside().make(asked);
    match mood {
        Mood::MakeAndStall => std::future::pending().await,
        Mood::MakeAndCut => {
            let pieces = [
                Ok(Bytes::from_static(b"{\"id\":")),
                Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)),
            ];
            Body::from_stream(futures_util::stream::iter(pieces)).into_response()
        }
        _ => Json(object).into_response(),
    }
}

fn problem(status: StatusCode, of: &str) -> Response {
    let error = json!({ "type": of, "message": "as the test wants it" });
    (status, Json(json!({ "error": error }))).into_response()
}

/// What Stripe says of an address that it takes for none.
fn no_address(form: &HashMap<String, String>) -> Option<Response> {
    let email = form.get("email")?;
    let is_address = email.split('@').next_back()?.contains('.');
    let message = format!("Invalid email address: {email}");
    (!is_address).then(|| refused("email", "email_invalid", message))
}

/// A refusal of a field, as Stripe words it.
fn refused(param: &str, code: &str, message: String) -> Response {
    let error = json!({
        "type": "invalid_request_error", "code": code, "param": param, "message": message,
    });
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
}

impl Inside {
    /// Whether a key comes for the first time, or with the same request again.
    fn is_the_first(&mut self, asked: &Asked) -> bool {
        let first = self.first.entry(asked.key.clone());
        *first.or_insert_with(|| asked.clone()) == *asked
    }

    /// What Stripe says of a form or a filter about a customer that it does not have.
    fn no_customer(&self, fields: &HashMap<String, String>) -> Option<Response> {
        let id = fields.get("customer")?;
        let of_mode = match self.mood {
            Mood::Sandbox => {
                "; a similar object exists in live mode, but a test mode key was used to make this request."
            }
            Mood::Disown => "",
            _ if self.gone.contains(id) => "",
            _ => return None,
        };
        let message = format!("No such customer: '{id}'{of_mode}");
        Some(refused("customer", "resource_missing", message))
    }

    /// The answer to a key, made once.
    fn make(&mut self, asked: Asked) -> Value {
        if let Some(object) = self.answers.get(&asked.key) {
            return object.clone();
        }
        let prefix = if asked.path == "customers" {
            "cus"
        } else {
            "ii"
        };
        let mut object = json!({ "id": format!("{prefix}_{}", self.made.len()), "metadata": {} });
        for (name, value) in &asked.form {
            match name
                .strip_prefix("metadata[")
                .and_then(|name| name.strip_suffix(']'))
            {
                Some(name) => object["metadata"][name] = json!(value),
                None => object[name] = json!(value),
            }
        }
        self.made.push((asked.path.clone(), object.clone()));
        self.answers.insert(asked.key, object.clone());
        object
    }
}
