//! An API that a component adapts, by a script. What is not given piece by piece
//! is in the shape of OpenAI's `/v1/completions`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What the upstream does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers as it is asked, a text or a chat, whole or word by word, with this and counted
    /// tokens: 7 and 3.
    Answer(&'static str),
    /// Answers without counting tokens.
    AnswerWithoutUsage(&'static str),
    /// Answers with this status, these headers and this body.
    Say(u16, Vec<(&'static str, &'static str)>, &'static str),
    /// Answers with the headers that came, the secret among them.
    Echo,
    /// Answers once the test says so: [`Upstream::release`].
    Hold(&'static str),
    /// Answers with a JSON body.
    Json(&'static str),
    /// Answers with Server-Sent Events, a write for each piece; each piece after
    /// the first waits for the test to say so.
    Stream(&'static [&'static str]),
    /// Never answers.
    Stall,
    /// Cuts the connection in the middle of the body.
    Cut,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The other end of the connection that it came on.
    pub peer: SocketAddr,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Value,
}

/// A running upstream.
#[derive(Clone, Debug)]
pub struct Upstream {
    act: Arc<Mutex<Act>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicUsize>,
    released: Arc<Semaphore>,
    base: String,
    url: String,
}

/// A request that is being answered; a client that leaves drops it.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Upstream {
    /// Starts one that does this with every request.
    pub async fn start(act: Act) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), act).await
    }

    /// Starts one at another address of this machine.
    pub async fn start_at(ip: IpAddr, act: Act) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let this = Self::new(&format!("http://{address}"), act);
        let router = Router::new().fallback(answer).with_state(this.clone());
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        this
    }

    /// The certificate of those that speak TLS, which it is signed with itself: `openssl
    /// req -x509` made it, for a hundred years.
    pub const CERTIFICATE: &str = include_str!("../../fixtures/tls/localhost.pem");

    /// Starts one that speaks TLS, as `localhost`.
    pub async fn start_with_tls(act: Act) -> Self {
        let certificate = CertificateDer::from_pem_slice(Self::CERTIFICATE.as_bytes());
        let key = include_bytes!("../../fixtures/tls/localhost.key");
        let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.expect("a certificate")], key)
            .expect("a configuration");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let this = Self::new(&format!("https://localhost:{port}"), act);
        let router = Router::new().fallback(answer).with_state(this.clone());
        let tls = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (tls, router) = (tls.clone(), router.clone());
                tokio::spawn(async move {
                    // who does not trust the certificate says so and goes
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = router.layer(Extension(ConnectInfo(peer)));
                    let service = TowerToHyperService::new(service);
                    let served = auto::Builder::new(TokioExecutor::new());
                    let _ = served.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        this
    }

    fn new(origin: &str, act: Act) -> Self {
        Self {
            act: Arc::new(Mutex::new(act)),
            seen: Arc::default(),
            open: Arc::default(),
            released: Arc::new(Semaphore::new(0)),
            base: format!("{origin}/v1"),
            url: format!("{origin}/v1/completions"),
        }
    }

    /// Address of its completions endpoint.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Address of the API as a whole.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What it does from now on.
    pub fn act(&self, act: Act) {
        *self.act.lock().expect("no panic") = act;
    }

    /// Lets it answer as many of the requests it holds.
    pub fn release(&self, requests: usize) {
        self.released.add_permits(requests);
    }

    /// The requests that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Requests that it has not answered and whose clients are still there.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// The pieces, each after its permit. What is dropped with it is the client's
/// being there.
fn stream(upstream: Upstream, open: Open, pieces: &'static [&'static str]) -> Response {
    let start = (pieces.iter().enumerate(), upstream, open);
    let body = futures_util::stream::unfold(start, async |(mut pieces, upstream, open)| {
        let (index, piece) = pieces.next()?;
        if index > 0 {
            upstream.released.acquire().await.expect("open").forget();
        }
        let piece = Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes()));
        Some((piece, (pieces, upstream, open)))
    });
    let headers = [("content-type", "text/event-stream")];
    (headers, Body::from_stream(body)).into_response()
}

async fn answer(
    State(upstream): State<Upstream>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    version: Version,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let open = Open::new(&upstream.open);
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_chat = body["messages"].is_array();
    let is_streamed = body["stream"] == true;
    let echo = format!("{headers:?}");
    upstream.seen.lock().expect("no panic").push(Seen {
        peer,
        version,
        headers,
        body,
    });
    let act = upstream.act.lock().expect("no panic").clone();
    match act {
        Act::Answer(text) if is_streamed => words(text, is_chat),
        Act::Answer(text) if is_chat => chat(text),
        Act::Answer(text) => completion(text, Some(7)),
        Act::AnswerWithoutUsage(text) => completion(text, None),
        Act::Echo => completion(&echo, Some(7)),
        Act::Hold(text) => {
            upstream.released.acquire().await.expect("open").forget();
            completion(text, Some(7))
        }
        Act::Say(status, headers, body) => {
            let status = StatusCode::from_u16(status).expect("a status");
            let mut response = (status, body).into_response();
            for (name, value) in headers {
                response
                    .headers_mut()
                    .insert(name, value.parse().expect("a header"));
            }
            response
        }
        Act::Json(body) => ([("content-type", "application/json")], body).into_response(),
        Act::Stream(pieces) => stream(upstream.clone(), open, pieces),
        Act::Stall => std::future::pending().await,
        Act::Cut => {
            let pieces = [
                Ok(Bytes::from_static(b"{\"choices\":")),
                Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)),
            ];
            Body::from_stream(futures_util::stream::iter(pieces)).into_response()
        }
    }
}

/// A chat's answer, whole.
fn chat(text: &str) -> Response {
    let message = json!({ "role": "assistant", "content": text });
    let choice = json!({ "index": 0, "message": message, "finish_reason": "stop" });
    let answer = json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream",
        "choices": [choice],
        "usage": usage(7),
    });
    axum::Json(answer).into_response()
}

/// The words of a text, a write for each, and how many tokens they are.
fn words(text: &'static str, is_chat: bool) -> Response {
    let said = move |text: &str, end: Value| {
        let choice = match is_chat {
            true => json!({ "index": 0, "delta": { "content": text }, "finish_reason": end }),
            false => json!({ "index": 0, "text": text, "finish_reason": end }),
        };
        json!({ "id": "1", "created": 1, "model": "upstream", "choices": [choice] })
    };
    let mut events: Vec<_> = text
        .split_inclusive(' ')
        .map(|word| said(word, Value::Null).to_string())
        .collect();
    events.push(said("", json!("stop")).to_string());
    events.push(json!({ "choices": [], "usage": usage(7) }).to_string());
    events.push("[DONE]".to_owned());
    let events = events.into_iter();
    let pieces = events.map(|event| Ok::<_, std::io::Error>(format!("data: {event}\n\n")));
    let headers = [("content-type", "text/event-stream")];
    (
        headers,
        Body::from_stream(futures_util::stream::iter(pieces)),
    )
        .into_response()
}

fn completion(text: &str, prompt_tokens: Option<u32>) -> Response {
    let mut answer = json!({
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "upstream",
        "choices": [{ "text": text, "index": 0, "logprobs": null, "finish_reason": "stop" }],
    });
    if let Some(prompt) = prompt_tokens {
        answer["usage"] = usage(prompt);
    }
    axum::Json(answer).into_response()
}

fn usage(prompt: u32) -> Value {
    let completion = 3;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}
