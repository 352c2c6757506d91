//! Traces and metrics over OTLP, received by a collector of the test.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;

use crate::harness::{Act, Host, Reply, Upstream, eventually, lawgent};

/// What came, each with its path and type.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<(String, String, Bytes)>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let this = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(receive).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (this, format!("http://{address}"))
    }

    /// Whether all these texts came to this path, as protobuf.
    fn has(&self, path: &str, texts: &[&str]) -> bool {
        let came = self.0.lock().expect("no panic");
        let bodies: Vec<_> = came
            .iter()
            .filter(|(to, kind, _)| to == path && kind == "application/x-protobuf")
            .map(|(_, _, body)| body)
            .collect();
        texts
            .iter()
            .all(|text| bodies.iter().any(|body| contains(body, text)))
    }

    /// Whether this text came at all.
    fn tells(&self, text: impl AsRef<[u8]>) -> bool {
        self.0
            .lock()
            .expect("no panic")
            .iter()
            .any(|(_, _, body)| contains(body, &text))
    }
}

impl Collector {
    /// The integers that came last of a counter, each with its attributes.
    fn counted(&self, counter: &str) -> Vec<(String, u64)> {
        let came = self.0.lock().expect("no panic");
        let mut found = Vec::new();
        for (_, _, body) in came.iter().filter(|(path, _, _)| path == "/v1/metrics") {
            // resource → scope → metric: its name, and the points of its sum
            let of_resources = inside(&[body], 1);
            let metrics = inside(&inside(&of_resources, 2), 2);
            let named = |metric: &&&[u8]| inside(&[metric], 1)[0] == counter.as_bytes();
            let Some(metric) = metrics.iter().find(named) else {
                continue;
            };
            let points = inside(&inside(&[metric], 7), 1);
            found = points.iter().map(|point| of_point(point)).collect();
        }
        found
    }
}

/// The attributes of a point, and its integer.
fn of_point(point: &[u8]) -> (String, u64) {
    let attributes = inside(&[point], 7).into_iter().map(|attribute| {
        let (key, value) = (inside(&[attribute], 1), inside(&inside(&[attribute], 2), 1));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        format!("{}={}", text(key[0]), text(value[0]))
    });
    let mut attributes: Vec<_> = attributes.collect();
    attributes.sort();
    let value = inside(&[point], 6)[0].try_into().expect("eight bytes");
    (attributes.join(" "), u64::from_le_bytes(value))
}

/// What messages of protobuf have in the field with this number.
fn inside<'a>(messages: &[&'a [u8]], number: u64) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    for message in messages {
        let mut rest = *message;
        while !rest.is_empty() {
            let tag = varint(&mut rest);
            let length = match tag & 7 {
                0 => {
                    varint(&mut rest);
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut rest)).expect("a length"),
                5 => 4,
                kind => panic!("protobuf has no {kind}"),
            };
            let (field, after) = rest.split_at(length);
            rest = after;
            if tag >> 3 == number {
                found.push(field);
            }
        }
    }
    found
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, after) = rest.split_first().expect("a byte");
        *rest = after;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

fn contains(body: &[u8], text: impl AsRef<[u8]>) -> bool {
    let text = text.as_ref();
    body.windows(text.len()).any(|window| window == text)
}

async fn receive(State(collector): State<Collector>, uri: Uri, headers: HeaderMap, body: Bytes) {
    let kind = headers
        .get("content-type")
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    collector
        .0
        .lock()
        .expect("no panic")
        .push((uri.path().to_owned(), kind.to_owned(), body));
}

#[tokio::test]
async fn each_request_is_traced_and_measured() {
    let (collector, url) = Collector::start().await;
    let host = Host::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer_with(json!({ "rate_limit": 1 })).await;
    let body = json!({ "text": "nobody's business", "model_id": 1, "max_new_tokens": 2 });
    let id = customer.post("/generate", body.clone()).await.expect(200)["request_id"].to_string();
    customer.post("/generate", body).await.expect_error(429);
    let spans = [
        "POST /generate",
        "POST /api/keys",
        "model-host",
        "/generate",
        "http.response.status_code",
        id.trim_matches('"'),
    ];
    eventually("the spans came", async || {
        collector.has("/v1/traces", &spans)
    })
    .await;
    let metrics = [
        "model_host.requests",
        "model_host.tokens",
        "model_host.cost",
        "model_host.request.duration",
        "model_host.kv_cache.pages",
        "model_host.prefix_cache.tokens",
        "gpt2",
        "rate_limited",
    ];
    eventually("the metrics came", async || {
        collector.has("/v1/metrics", &metrics)
    })
    .await;
    assert!(!collector.tells("nobody's business") && !collector.tells(customer.key()));
    // of a duration, in seconds: protobuf has the bounds of its histogram in a row
    let bounds = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12];
    assert!(collector.tells(bounds.map(f64::to_le_bytes).concat()));
}

#[tokio::test]
async fn tokens_and_cost_are_counted_as_they_are_charged() {
    let (collector, url) = Collector::start().await;
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let price = "price_per_million = { prompt = 1, completion = 3 }\n";
    let host = Host::builder()
        .config(format!("{}{price}", lawgent(upstream.url())))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    let mut host = host.start().await.ready().await;
    let customer = host.customer().await;
    let body = json!({ "text": "Once", "model_id": 2, "max_new_tokens": 5 });
    for _ in 0..2 {
        customer.post("/generate", body.clone()).await.expect(200);
    }
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    // it counts 7 and 3 tokens
    let model = "model=lawgent-thinking";
    for (counter, wanted) in [
        ("requests", vec![(format!("{model} status=ok"), 2)]),
        (
            "tokens",
            vec![
                (format!("kind=completion {model}"), 6),
                (format!("kind=prompt {model}"), 14),
            ],
        ),
        ("cost", vec![(model.to_owned(), 2 * (7 * 1000 + 3 * 3000))]),
    ] {
        let mut counted = collector.counted(&format!("model_host.{counter}"));
        counted.sort();
        assert_eq!(counted, wanted, "{counter}");
    }
}

#[tokio::test]
async fn the_service_has_the_name_that_its_environment_gives_it() {
    for (variable, value) in [
        ("OTEL_SERVICE_NAME", "north"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=north"),
        ("OTEL_RESOURCE_ATTRIBUTES", "zone=north"),
    ] {
        let (collector, url) = Collector::start().await;
        let host = Host::builder()
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
            .env("OTEL_BSP_SCHEDULE_DELAY", "200")
            .env(variable, value)
            .start()
            .await;
        host.anyone().get("/health").await.expect(200);
        let path = "/v1/traces";
        eventually("a span came", async || {
            collector.has(path, &["service.name"])
        })
        .await;
        // a field of a message: its length, and the text
        let named = |name: &str| {
            let length = u8::try_from(name.len()).expect("a short name");
            let value = [&[b'\n', length][..], name.as_bytes()].concat();
            let attribute = [&b"service.name\x12"[..], &[length + 2], &value].concat();
            collector.tells(attribute)
        };
        assert_eq!(named("north"), !value.starts_with("zone"), "{value}");
        assert_eq!(named("model-host"), value.starts_with("zone"), "{value}");
        assert!(collector.tells("north"));
    }
}

#[tokio::test]
async fn what_has_no_endpoint_is_not_sent() {
    for (signal, sent, other) in [
        ("TRACES", "POST /generate", "model_host.tokens"),
        ("METRICS", "model_host.tokens", "POST /generate"),
    ] {
        let (collector, url) = Collector::start().await;
        let endpoint = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
        let host = Host::builder().env(&endpoint, format!("{url}/here"));
        let mut host = host.start().await.ready().await;
        let body = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 2 });
        let customer = host.customer().await;
        customer.post("/generate", body).await.expect(200);
        host.signal("TERM");
        assert!(host.wait_exit().await.success());
        assert!(collector.has("/here", &[sent]) && !collector.tells(other));
        // nor to where nothing is configured
        assert!(!host.log().contains("could not be sent"), "{}", host.log());
    }
}

#[tokio::test]
async fn a_method_of_the_clients_own_is_not_told() {
    let (collector, url) = Collector::start().await;
    let host = Host::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .start()
        .await;
    let own = Method::from_bytes(b"STRANGERS-OWN").expect("a method");
    let request = host.anyone().request(own, "/health");
    let reply = Reply::of(request.send().await.expect("an answer")).await;
    assert_eq!(reply.expect_error(405), "method_not_allowed");
    host.anyone().get("/health").await.expect(200);
    eventually("the spans came", async || {
        collector.has("/v1/traces", &["HTTP /health", "_OTHER", "GET /health"])
    })
    .await;
    assert!(!collector.tells("STRANGERS-OWN"));
}

#[tokio::test]
async fn what_is_not_on_record_is_counted_as_such() {
    let (collector, url) = Collector::start().await;
    let host = Host::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    host.database().refuse_usage().await;
    let body = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 2 });
    let refused = customer.post("/generate", body).await;
    assert_eq!(refused.expect_error(503), "not_recorded");
    eventually("the metrics came", async || {
        collector.has("/v1/metrics", &["model_host.requests", "not_recorded"])
    })
    .await;
    // nothing was sold
    assert!(!collector.tells("model_host.tokens") && !collector.tells("model_host.cost"));
}

#[tokio::test]
async fn what_is_held_back_is_sent_at_the_end() {
    let (collector, url) = Collector::start().await;
    let hour = "3600000";
    let mut host = Host::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .env("OTEL_METRIC_EXPORT_INTERVAL", hour)
        .env("OTEL_BSP_SCHEDULE_DELAY", hour)
        .start()
        .await
        .ready()
        .await;
    let body = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 2 });
    host.customer()
        .await
        .post("/generate", body)
        .await
        .expect(200);
    assert!(!collector.tells("POST /generate") && !collector.tells("model_host.tokens"));
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    assert!(collector.has("/v1/traces", &["POST /generate"]));
    assert!(collector.has("/v1/metrics", &["model_host.tokens"]));
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_nothing() {
    let mut host = Host::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "100")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    for _ in 0..5 {
        let body = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 2 });
        customer.post("/generate", body).await.expect(200);
    }
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
}
