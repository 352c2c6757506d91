//! What must not be accepted: each refused with the contract's error, and the
//! server goes on.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Client, GPT2, Host, PATIENCE, Reply};

const LIMITS: &str = "[requests]\nmax_body_bytes = 2000\nbody_timeout_ms = 300\n";

/// A server that is strict about bodies.
async fn strict() -> (Host, Client) {
    let host = Host::builder()
        .config(format!("{LIMITS}{GPT2}"))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    (host, customer)
}

/// Sends a body as it is, of this type.
async fn send(client: &Client, path: &str, kind: Option<&str>, body: impl Into<Body>) -> Reply {
    let request = client.request(Method::POST, path).body(body);
    let request = match kind {
        Some(kind) => request.header("content-type", kind),
        None => request,
    };
    Reply::of(request.send().await.expect("an answer")).await
}

/// Sends bytes that need not be HTTP; returns what comes until the server closes.
async fn raw(host: &Host, bytes: &[u8]) -> String {
    let address = host.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // a server that closes on unread bytes may reset
    read.expect("the server closes").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn still_answers(host: &Host, customer: &Client) {
    let good = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", good).await.expect(200);
    host.anyone().get("/health").await.expect(200);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let (host, customer) = strict().await;
    for body in [
        &b""[..],
        b"{",
        b"{\"text\": \"Once\", \"model_id\": 1",
        b"{\"text\": \"Once\", \"model_id\": 1} more",
        b"{'text': 'Once', 'model_id': 1}",
        b"{\"text\": \"Once\", \"model_id\": 1,}",
        b"text=Once&model_id=1",
        b"\xff\xfe",
        b"{\"text\": \"\xff\xff\", \"model_id\": 1}",
        b"{\"text\": \"\\ud800\", \"model_id\": 1}",
        b"{\"text\": \"line\nbreak\", \"model_id\": 1}",
        b"{\"text\": \"Once\", \"model_id\": 1, \"temperature\": NaN}",
        b"{\"text\": \"Once\", \"model_id\": 1, \"temperature\": Infinity}",
        b"{\"text\": \"Once\", \"model_id\": 1, \"temperature\": 1e999}",
        b"{\"text\": \"Once\", \"model_id\": 01}",
    ] {
        let name = String::from_utf8_lossy(body).into_owned();
        let reply = send(
            &customer,
            "/generate",
            Some("application/json"),
            body.to_vec(),
        )
        .await;
        assert_eq!(reply.status, 400, "{name}: {}", reply.body);
        assert_eq!(reply.expect_error(400), "invalid_json");
    }
    for (client, path) in [
        (&customer, "/v1/completions"),
        (&host.admin(), "/customers"),
        (&host.admin(), "/api/keys"),
    ] {
        let reply = send(client, path, Some("application/json"), "{\"name\": ").await;
        assert_eq!(reply.expect_error(400), "invalid_json", "{path}");
    }
    let deep = format!("{{\"text\": \"Once\", \"model_id\": {}1", "[".repeat(1000));
    let reply = send(&customer, "/generate", Some("application/json"), deep).await;
    assert!(reply.status.is_client_error());
    still_answers(&host, &customer).await;
    assert_eq!(
        customer.get("/usage").await.expect(200)["totals"]["requests"],
        1
    );
}

#[tokio::test]
async fn values_of_wrong_types_and_sizes_are_refused_by_field() {
    let (host, customer) = strict().await;
    for (body, param) in [
        (json!({ "model_id": 1 }), "text"),
        (json!({ "text": "Once" }), "model_id"),
        (json!({ "text": ["Once"], "model_id": 1 }), "text"),
        (json!({ "text": "Once", "model_id": "1" }), "model_id"),
        (json!({ "text": "Once", "model_id": 1.5 }), "model_id"),
        (json!({ "text": "Once", "model_id": null }), "model_id"),
        (
            json!({ "text": "Once", "model_id": 9_223_372_036_854_775_808_u64 }),
            "model_id",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "max_length": 4_294_967_296_u64 }),
            "max_length",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "max_new_tokens": -1 }),
            "max_new_tokens",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "temperature": 1e300 }),
            "temperature",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "temperature": -1e300 }),
            "temperature",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "top_p": -0.0 }),
            "top_p",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "top_k": 1.0 }),
            "top_k",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "seed": 1e20 }),
            "seed",
        ),
        (json!({ "text": "Once", "model_id": 1, "stop": 1 }), "stop"),
        (
            json!({ "text": "Once", "model_id": 1, "stop": [1] }),
            "stop",
        ),
        (
            json!({ "text": "Once", "model_id": 1, "prompt": "Once" }),
            "prompt",
        ),
    ] {
        let reply = customer.post("/generate", body.clone()).await;
        assert_eq!(reply.status, 422, "{body}: {}", reply.body);
        assert_eq!(
            reply.body["error"]["param"], param,
            "{body}: {}",
            reply.body
        );
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    for body in [json!([]), json!("text"), json!(1), Value::Null, json!(true)] {
        for (client, path) in [
            (&customer, "/generate"),
            (&customer, "/v1/completions"),
            (&host.admin(), "/customers"),
            (&host.admin(), "/api/keys"),
        ] {
            let reply = client.post(path, body.clone()).await;
            assert!(reply.body["error"]["param"].is_null(), "{}", reply.body);
            assert!(!reply.body.to_string().contains("struct"), "{}", reply.body);
            assert_eq!(reply.expect_error(422), "invalid_request");
        }
    }
    let twice = r#"{"text": "Once", "text": "Twice", "model_id": 1}"#;
    send(&customer, "/generate", Some("application/json"), twice)
        .await
        .expect_error(422);
    still_answers(&host, &customer).await;
}

#[tokio::test]
async fn models_that_are_not_there_are_refused() {
    let (host, customer) = strict().await;
    for id in [0, -1, 2, i64::MAX, i64::MIN] {
        let reply = customer
            .post("/generate", json!({ "text": "Once", "model_id": id }))
            .await;
        assert_eq!(reply.body["error"]["param"], "model_id");
        assert_eq!(reply.expect_error(404), "model_not_found", "{id}");
    }
    still_answers(&host, &customer).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_or_never_ends_is_refused() {
    let (host, customer) = strict().await;
    let large = json!({ "text": "x".repeat(3000), "model_id": 1 });
    let reply = customer.post("/generate", large).await;
    assert!(
        reply.body["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("2000")),
        "{}",
        reply.body
    );
    assert_eq!(reply.expect_error(413), "body_too_large");
    let large = json!({ "name": "x".repeat(3000), "email": "a@b.c" });
    assert_eq!(
        host.admin()
            .post("/customers", large)
            .await
            .expect_error(413),
        "body_too_large"
    );

    // one that stops coming, and one that trickles
    let start = Bytes::from_static(b"{\"text\": \"Once\", ");
    let stopped = stream::unfold(Some(start), async |start| match start {
        Some(start) => Some((Ok::<_, std::io::Error>(start), None)),
        None => std::future::pending().await,
    });
    let trickling = stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
    });
    for body in [Body::wrap_stream(stopped), Body::wrap_stream(trickling)] {
        let reply = send(&customer, "/generate", Some("application/json"), body).await;
        assert_eq!(reply.expect_error(408), "body_timeout");
    }
    // one that comes without end, in chunks
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\n",
        customer.key()
    );
    let chunk = format!("64\r\n{}\r\n", " ".repeat(100));
    let endless = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{}",
        chunk.repeat(30)
    );
    let answer = raw(&host, endless.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // one that announces more than comes
    let request = format!("{head}content-length: 100\r\n\r\n{{\"text\"");
    let answer = raw(&host, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    still_answers(&host, &customer).await;
}

#[tokio::test]
async fn a_body_without_a_key_is_not_read() {
    let (host, _) = strict().await;
    let endless = Body::wrap_stream(stream::pending::<std::io::Result<Bytes>>());
    let reply = send(
        &host.anyone(),
        "/generate",
        Some("application/json"),
        endless,
    )
    .await;
    assert_eq!(reply.expect_error(401), "missing_api_key");
}

#[tokio::test]
async fn a_body_of_another_type_is_refused() {
    let (_host, customer) = strict().await;
    let good = r#"{"text": "Once", "model_id": 1, "max_new_tokens": 1}"#;
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "",
        "json",
    ] {
        let reply = send(&customer, "/generate", Some(kind), good).await;
        assert_eq!(reply.expect_error(415), "unsupported_media_type", "{kind}");
    }
    for kind in [
        None,
        Some("application/json; charset=utf-8"),
        Some("Application/JSON"),
    ] {
        send(&customer, "/generate", kind, good).await.expect(200);
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_refused() {
    let (host, customer) = strict().await;
    let admin = host.admin();
    for path in [
        "/",
        "/generate/",
        "/nothing",
        "/customers/one",
        "/api/keys/1.5",
        "/v1/models/%ff",
        "/customers/99999999999999999999",
    ] {
        let reply = admin.get(path).await;
        assert!(!reply.header("x-request-id").is_empty(), "{path}");
        if path != "/" {
            reply.expect_error(404);
        }
    }
    for path in ["/customers/-1", "/customers/9223372036854775807"] {
        assert_eq!(
            admin.get(path).await.expect_error(404),
            "customer_not_found"
        );
    }
    for (method, path, allowed) in [
        (Method::GET, "/generate", "POST"),
        (Method::PUT, "/generate", "POST"),
        (Method::DELETE, "/v1/completions", "POST"),
        (Method::POST, "/models", "GET"),
        (Method::PUT, "/customers/1", "DELETE"),
        (Method::GET, "/api/keys/1/toggle", "POST"),
        (Method::GET, "/admin/reload", "POST"),
    ] {
        let response = customer
            .request(method.clone(), path)
            .send()
            .await
            .expect("an answer");
        let reply = Reply::of(response).await;
        assert!(
            reply.header("allow").contains(allowed),
            "{method} {path}: {:?}",
            reply.headers
        );
        assert_eq!(
            reply.expect_error(405),
            "method_not_allowed",
            "{method} {path}"
        );
    }
    still_answers(&host, &customer).await;
}

#[tokio::test]
async fn what_is_not_http_hurts_nobody() {
    let (host, customer) = strict().await;
    for bytes in [
        &b"rubbish\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET /models HTTP/1.1\r\nhost: x\r\nx-api-key: \xff\xff\r\nconnection: close\r\n\r\n",
    ] {
        let answer = raw(&host, bytes).await;
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        assert!(answer.is_empty() || status.starts_with('4'), "{answer}");
    }
    let many = format!(
        "GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
        "x".repeat(1 << 17)
    );
    let answer = raw(&host, many.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    still_answers(&host, &customer).await;
}

#[tokio::test]
async fn an_id_of_the_client_is_not_taken_for_the_requests() {
    let host = Host::start().await;
    let request = host
        .anyone()
        .request(Method::GET, "/health")
        .header("x-request-id", "mine");
    let reply = Reply::of(request.send().await.expect("an answer")).await;
    assert!(
        reply.header("x-request-id").starts_with("req_"),
        "{:?}",
        reply.headers
    );
}
