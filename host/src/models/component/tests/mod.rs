//! Real components against a real socket: what a plugin can do, and what it can't.

mod adapters;
mod reuse;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use plugin_sdk::{
    CountSource, Error, ErrorKind, Event, Finish, FinishReason, Params, Prompt, Request, Settings,
    Usage,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::config::{Components, ModelLimits};

use super::{Artifact, Component, Runtime, Spec, Upstream};

const SECRET: &str = "sk-very-secret";

/// Adapters to the same format, by `wasi:http` and by `upstream`.
const BOTH_WAYS: [&str; 2] = ["lawgent-thinking", "openai"];

/// An HTTP server that answers every request with the same bytes, or never.
pub(super) struct Api {
    pub(super) url: String,
    pub(super) requests: mpsc::Receiver<String>,
}

impl Api {
    async fn start(response: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/completions", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, response.clone(), sender.clone()));
            }
        });
        Self { url, requests }
    }

    pub(super) async fn answering(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
        Self::start(Some(head + body)).await
    }
}

/// Reports each request, and "gone" when the client is.
async fn serve(mut stream: TcpStream, response: Option<String>, requests: mpsc::Sender<String>) {
    let mut bytes = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut bytes).await {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if body.len() < length {
            continue;
        }
        bytes.clear();
        requests.send(text).await.unwrap();
        if let Some(response) = &response {
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    }
    let _ = requests.send("gone".to_owned()).await;
}

pub(super) fn runtime() -> Arc<Runtime> {
    static RUNTIME: OnceLock<(Arc<Runtime>, tempfile::TempDir)> = OnceLock::new();
    let (runtime, _) = RUNTIME.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        (
            Arc::new(Runtime::new(folder.path(), &Components::default()).unwrap()),
            folder,
        )
    });
    Arc::clone(runtime)
}

pub(super) fn spec(plugin: &str, api_url: Option<&str>) -> Spec {
    let plugins = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins"));
    let settings = [("model_name", Some("thinker")), ("api_url", api_url)];
    let settings = settings
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    Spec {
        model: format!("test-{plugin}"),
        artifact: Artifact::read(&plugins.join(plugin).join(plugin).with_extension("wasm"))
            .unwrap(),
        settings: settings
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        upstream: api_url.map(|url| Upstream {
            secret: Some(SECRET.into()),
            ..Upstream::new(url.parse().unwrap())
        }),
        limits: ModelLimits {
            cpu_ms: 1_500,
            response_bytes: 1 << 20,
            ..ModelLimits::default()
        },
    }
}

async fn open(plugin: &str, api_url: &str) -> Component {
    Component::open(&runtime(), spec(plugin, Some(api_url)))
        .await
        .unwrap()
}

pub(super) fn request(prompt: &str) -> Request {
    Request {
        request_id: "r-1".to_owned(),
        model: "thinker".to_owned(),
        prompt: Prompt::Text(prompt.to_owned()),
        params: Params {
            max_tokens: Some(5),
            temperature: Some(0.5),
            ..Params::default()
        },
        tools: vec![],
        deadline_ms: 60_000,
        ext: vec![],
    }
}

/// All events up to the end.
async fn answer(component: &Component, request: Request) -> Result<Vec<Event>, Error> {
    let mut completion = component.generate(request).await?;
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Finish(_))) {
        events.extend(completion.next().await?);
    }
    Ok(events)
}

/// The one text of an answer of misbehave.
async fn said(component: &Component, prompt: &str) -> Result<String, Error> {
    match answer(component, request(prompt)).await?.remove(0) {
        Event::Text(text) => Ok(text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_api_answers_through_the_adapter() {
    let body = r#"{"choices":[{"text":" you?","finish_reason":"stop"}],
        "usage":{"prompt_tokens":2,"completion_tokens":3}}"#;
    let mut api = Api::answering("200 OK", "", body).await;
    let component = open("lawgent-thinking", &api.url).await;
    assert_eq!(component.info().name, "lawgent-thinking");
    assert_eq!(component.info().models[0].id, "thinker");
    assert_eq!(component.digest().len(), 64);
    let mut session = component.session(Duration::from_secs(10)).await.unwrap();
    let estimate = session.estimate(&request("how are")).await.unwrap();
    assert_eq!(estimate.prompt_tokens, 2);

    let usage = Usage {
        prompt_tokens: 2,
        completion_tokens: 3,
        source: CountSource::Exact,
        ..Usage::default()
    };
    let finish = Finish {
        reason: FinishReason::Stop,
        usage,
        ext: vec![],
    };
    let events = answer(&component, request("how are")).await.unwrap();
    assert_eq!(
        events,
        [Event::Text(" you?".to_owned()), Event::Finish(finish)]
    );

    // describing and estimating have sent nothing, so this is the first request
    let sent = api.requests.recv().await.unwrap();
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/completions HTTP/1.1"), "{head}");
    assert!(
        head.contains(&format!("authorization: Bearer {SECRET}")),
        "{head}"
    );
    assert!(head.contains("x-request-id: r-1"), "{head}");
    assert_eq!(
        body,
        r#"{"model":"thinker","prompt":"how are","max_tokens":5,"temperature":0.5}"#
    );
}

#[tokio::test]
async fn an_apis_failure_has_its_kind() {
    use ErrorKind::{InvalidRequest, Overloaded, RateLimited, Upstream, UpstreamAuth};
    let long = "a".repeat(2 << 20);
    for (status, body, kind, retry_after_ms) in [
        (
            "400 Bad Request",
            r#"{"error":{"message":"no such thing"}}"#,
            InvalidRequest,
            None,
        ),
        ("401 Unauthorized", "{}", UpstreamAuth, None),
        ("404 Not Found", "{}", Upstream, None),
        ("429 Too Many", "{}", RateLimited, Some(7000)),
        ("500 Oops", "<html>", Upstream, None),
        ("503 Busy", "", Overloaded, Some(7000)),
        ("302 Found", "", Upstream, None),
        ("200 OK", "rubbish", Upstream, None),
        ("200 OK", &long, Upstream, None),
    ] {
        let headers = "retry-after: 7\r\nlocation: http://127.0.0.1:1/\r\n";
        for plugin in BOTH_WAYS {
            let mut api = Api::answering(status, headers, body).await;
            let component = open(plugin, &api.url).await;
            let error = answer(&component, request("hi")).await.unwrap_err();
            assert_eq!(error.kind, kind, "{plugin}, {status}: {error:?}");
            assert_eq!(error.retry_after_ms, retry_after_ms, "{plugin}, {status}");
            assert!(api.requests.recv().await.unwrap().starts_with("POST"));
            // the connection may be gone by now, but nothing more was asked
            let next = api.requests.try_recv().unwrap_or("gone".to_owned());
            assert_eq!(next, "gone", "{plugin}: {status} was tried again");
        }
    }
    for plugin in BOTH_WAYS {
        let refusing = open(plugin, "http://127.0.0.1:1/").await;
        let error = answer(&refusing, request("hi")).await.unwrap_err();
        assert_eq!(
            (error.kind, error.code.as_deref()),
            (Upstream, Some("upstream_unreachable"))
        );
    }
}

#[tokio::test]
async fn a_silent_api_is_a_timeout() {
    let api = Api::start(None).await;
    for plugin in BOTH_WAYS {
        let component = open(plugin, &api.url).await;
        let start = Instant::now();
        let request = Request {
            deadline_ms: 200,
            ..request("hi")
        };
        let error = answer(&component, request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout, "{plugin}: {error:?}");
        assert!(start.elapsed() < Duration::from_secs(30), "{plugin}");
    }
}

#[tokio::test]
async fn dropping_a_request_ends_it_at_the_api() {
    for plugin in BOTH_WAYS {
        let mut api = Api::start(None).await;
        let component = open(plugin, &api.url).await;
        {
            let generating = component.generate(request("hi"));
            tokio::pin!(generating);
            tokio::select! {
                _ = &mut generating => panic!("there is no answer"),
                sent = api.requests.recv() => assert!(sent.unwrap().starts_with("POST")),
            }
        }
        let gone = tokio::time::timeout(Duration::from_secs(60), api.requests.recv()).await;
        assert_eq!(gone.unwrap().as_deref(), Some("gone"), "{plugin}");
    }
}

#[tokio::test]
async fn both_ways_out_lead_to_the_upstream_alone() {
    let body = r#"{"choices":[{"text":"yes","finish_reason":"stop"}]}"#;
    let mut api = Api::answering("200 OK", "", body).await;
    for plugin in BOTH_WAYS {
        for (setting, value, code) in [
            ("api_url", "https://forbidden.example/", "not_granted"),
            ("api_url", "http://127.0.0.1:1/", "not_granted"),
            (
                "extra_headers",
                r#"{"authorization":"Bearer mine"}"#,
                "invalid_upstream_request",
            ),
            (
                "extra_headers",
                r#"{"x-more":"two\nlines"}"#,
                "invalid_upstream_request",
            ),
        ] {
            let mut spec = spec(plugin, Some(&api.url));
            let own = [("model_name", "thinker"), ("api_url", &api.url)];
            let pairs = own
                .into_iter()
                .filter(|(key, _)| *key != setting)
                .chain([(setting, value)]);
            spec.settings = pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let component = Component::open(&runtime(), spec).await.unwrap();
            let error = answer(&component, request("hi")).await.unwrap_err();
            assert_eq!(error.code.as_deref(), Some(code), "{plugin}: {error:?}");
            assert!(api.requests.try_recv().is_err(), "{plugin}, {setting}");
        }
        // of the requests that the operator allows, none is left
        let mut spec = spec(plugin, Some(&api.url));
        spec.limits.upstream_requests = 0;
        let component = Component::open(&runtime(), spec).await.unwrap();
        answer(&component, request("hi")).await.unwrap_err();
        assert!(api.requests.try_recv().is_err(), "{plugin}");
    }
}

#[tokio::test]
async fn a_plugin_that_does_not_estimate_is_not_asked_again() {
    let component = open("openai", "http://127.0.0.1:1/").await;
    assert!(!component.estimates);
    let mut session = component.session(Duration::from_secs(10)).await.unwrap();
    let error = session.estimate(&request("how are")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(
        open("lawgent-thinking", "http://127.0.0.1:1/")
            .await
            .estimates
    );
}

#[tokio::test]
async fn misbehaviour_costs_its_own_request_only() {
    let component = open("misbehave", "http://127.0.0.1:1/").await;
    for (prompt, detail) in [
        ("loop", "computed for longer"),
        ("trap", "unreachable"),
        ("allocate", "forcing trap when growing memory"),
        ("recurse", "wasm trap"),
        ("exit", ""),
        ("empty", "no event"),
        ("endless stream", ""),
    ] {
        let error = answer(&component, request(prompt)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream, "{prompt}: {error:?}");
        assert_eq!(
            error.code.as_deref(),
            Some("plugin_failed"),
            "{prompt}: {error:?}"
        );
        assert!(
            error.detail.clone().unwrap().contains(detail),
            "{prompt}: {error:?}"
        );
        assert!(!error.message.contains("wasm"), "{prompt}: {error:?}");
        assert_eq!(
            said(&component, "still there?").await.unwrap(),
            "still there?"
        );
    }
    let asleep = Request {
        deadline_ms: 100,
        ..request("sleep")
    };
    let error = answer(&component, asleep).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    let shouted = answer(&component, request("shout")).await.unwrap_err();
    assert!(shouted.message.len() < 1000);
    for flood in ["log flood", "print flood"] {
        // a slow machine spends the whole of its time on the lines
        match said(&component, flood).await {
            Ok(said) => assert_eq!(said, flood),
            Err(error) => assert!(error.detail.unwrap().contains("computed for longer")),
        }
    }
}

#[tokio::test]
async fn a_loop_leaves_others_their_turn() {
    let component = Arc::new(open("misbehave", "http://127.0.0.1:1/").await);
    let looping = Arc::clone(&component);
    // on the one thread of this test
    let looping = tokio::spawn(async move { answer(&looping, request("loop")).await });
    let handle = looping.abort_handle();
    // a task too: the runtime comes back to the test itself only after many turns
    let other = tokio::spawn(async move {
        let said = said(&component, "hello").await;
        (said, handle.is_finished())
    });
    let (said, loop_is_finished) = other.await.unwrap();
    assert_eq!(said.unwrap(), "hello");
    assert!(
        !loop_is_finished,
        "the loop ended before anyone else had a turn"
    );
    assert!(looping.await.unwrap().is_err());
}

#[tokio::test]
async fn a_plugin_sees_nothing_of_this_machine() {
    let component = open("misbehave", "http://127.0.0.1:1/").await;
    let seen = said(&component, "peek").await.unwrap();
    assert_eq!(seen, "0 variables 0 arguments 0 files");
}

#[tokio::test]
async fn a_plugin_reaches_its_upstream_and_nothing_else() {
    let mut api = Api::answering("200 OK", "set-cookie: a=b\r\nx-more: c\r\n", "hello").await;
    let component = open("misbehave", &api.url).await;
    let seen = said(&component, "fetch").await.unwrap();
    assert_eq!(seen, r#"200 ["content-length", "x-more"] hello"#);
    assert!(api.requests.recv().await.unwrap().contains(SECRET));

    let error = said(&component, "fetch https://forbidden.example/")
        .await
        .unwrap_err();
    assert_eq!(error.code.as_deref(), Some("not_granted"), "{error:?}");
    let error = said(&component, "fetch\nauthorization: Bearer mine")
        .await
        .unwrap_err();
    assert_eq!(
        error.code.as_deref(),
        Some("invalid_upstream_request"),
        "{error:?}"
    );
    assert!(api.requests.try_recv().is_err());

    // the operator may name this machine
    let named = open("misbehave", &api.url.replace("127.0.0.1", "localhost")).await;
    assert!(said(&named, "fetch").await.unwrap().starts_with("200"));
}

#[tokio::test]
async fn the_secret_is_not_told_even_if_the_upstream_repeats_it() {
    let header = format!("x-echo: {SECRET}\r\n");
    let api = Api::answering("200 OK", &header, "fine").await;
    let component = open("misbehave", &api.url).await;
    assert_eq!(
        said(&component, "fetch").await.unwrap(),
        r#"200 ["content-length"] fine"#
    );

    let api = Api::answering("401 No", "", &format!("wrong key {SECRET}")).await;
    for plugin in ["misbehave"].into_iter().chain(BOTH_WAYS) {
        let component = open(plugin, &api.url).await;
        let error = answer(&component, request("fetch")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream);
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_plugin_says_why() {
    let reason = async |spec| {
        Component::open(&runtime(), spec)
            .await
            .unwrap_err()
            .to_string()
    };

    let text = Spec {
        artifact: Artifact::new("notes.wasm", b"not a component".to_vec()),
        ..spec("misbehave", None)
    };
    let text = reason(text).await;
    assert!(
        text.contains("notes.wasm: not a WebAssembly component"),
        "{text}"
    );
    let missing = Artifact::read("no/such.wasm".as_ref()).unwrap_err();
    assert!(
        missing.contains("no/such.wasm: cannot read it"),
        "{missing}"
    );
    let offline = reason(spec("lawgent-thinking", None)).await;
    assert!(
        offline.contains("wasi:http") && offline.contains("no api_url"),
        "{offline}"
    );
    let unset = Spec {
        settings: Settings::default(),
        ..spec("lawgent-thinking", Some("http://a"))
    };
    assert!(reason(unset).await.contains("setting api_url is missing"));

    let exports = |exports: &[&str]| super::link::check_exports(exports).unwrap_err();
    assert!(exports(&["wasi:http/incoming-handler@0.2.0"]).contains("no model:plugin/backend"));
    assert!(exports(&["model:plugin/backend@0.2.0"]).contains("made for model:plugin@0.2.0"));
    assert!(super::link::check_exports(&["exports", "model:plugin/backend@0.1.7"]).is_ok());
}
