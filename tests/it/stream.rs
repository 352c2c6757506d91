//! Answers that come as the model produces them, on each generating endpoint.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Act, Client, GPT2, Host, Upstream, component, eventually, lawgent};

const PROMPT: &str = "Once upon a time";

/// A configuration with a component that does what its prompt says.
fn with_misbehave(limits: &str) -> String {
    let plugin = component("misbehave");
    format!(
        "{GPT2}[[models]]\nid = 2\nname = \"misbehave\"\nplugin = \"{plugin}\"\n\
         api_url = \"http://127.0.0.1:9/\"\n[models.limits]\n{limits}\n"
    )
}

fn generate(model_id: i64, text: &str) -> Value {
    json!({ "model_id": model_id, "text": text, "stream": true, "temperature": 0 })
}

/// What is on record of a request, once it is.
async fn row(customer: &Client, id: &str) -> Value {
    let found = async || {
        let rows = customer.get("/usage/requests").await.expect(200);
        let rows = rows["requests"].as_array().expect("a list").clone();
        rows.into_iter().find(|row| row["request_id"] == id)
    };
    eventually("the request is on record", async || found().await.is_some()).await;
    found().await.expect("a row")
}

fn text_of(events: &[Value], path: &str) -> String {
    let texts = events
        .iter()
        .filter_map(|event| event.pointer(path)?.as_str());
    texts.collect()
}

#[tokio::test]
async fn the_pieces_come_to_the_whole_answer_and_its_usage() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let whole = json!({ "model_id": 1, "text": PROMPT, "temperature": 0, "max_new_tokens": 12 });
    let whole = customer.post("/generate", whole).await.expect(200);

    let mut ask = generate(1, PROMPT);
    ask["max_new_tokens"] = json!(12);
    let stream = customer.stream("/generate", ask).await;
    let header = |name| stream.headers[name].to_str().expect("text").to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-cache");
    assert_eq!(header("x-ratelimit-limit-requests"), "100000");
    let id = header("x-request-id");
    let events = stream.rest().await;

    let [pieces @ .., end, done] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(pieces.len() > 5, "token by token: {pieces:?}");
    assert_eq!(
        text_of(pieces, "/text"),
        whole["response"].as_str().expect("a text")
    );
    assert_eq!(done, "[DONE]");
    assert_eq!(end["request_id"], id.as_str());
    for field in [
        "tokens_used",
        "cost",
        "prompt_tokens",
        "completion_tokens",
        "finish_reason",
        "model_id",
        "model",
    ] {
        assert_eq!(end[field], whole[field], "{field}");
    }
    assert_eq!(row(&customer, &id).await["cost"], end["cost"]);
}

#[tokio::test]
async fn completions_stream_in_chunks_of_openais_shape() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let ask = json!({ "model": "gpt2", "prompt": PROMPT, "max_tokens": 8, "temperature": 0 });
    let whole = customer
        .post("/v1/completions", ask.clone())
        .await
        .expect(200);
    let streamed = async |options: Value| {
        let mut ask = ask.clone();
        ask["stream"] = json!(true);
        ask["stream_options"] = options;
        customer.stream("/v1/completions", ask).await.rest().await
    };

    let events = streamed(Value::Null).await;
    let [pieces @ .., last, done] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        text_of(pieces, "/choices/0/text"),
        whole["choices"][0]["text"].as_str().expect("a text")
    );
    assert!(
        pieces
            .iter()
            .all(|piece| piece["choices"][0]["finish_reason"].is_null())
    );
    assert_eq!(
        last["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert_eq!(done, "[DONE]");
    let ids: Vec<_> = pieces.iter().map(|piece| &piece["id"]).collect();
    assert!(
        ids.iter()
            .all(|id| *id == ids[0] && id.as_str().is_some_and(|id| id.starts_with("cmpl-")))
    );
    for piece in pieces {
        assert_eq!(
            (&piece["object"], &piece["model"]),
            (&json!("text_completion"), &json!("gpt2"))
        );
    }

    let events = streamed(json!({ "include_usage": true })).await;
    let usage = &events[events.len() - 2];
    assert_eq!(
        (&usage["choices"], &usage["usage"]),
        (&json!([]), &whole["usage"])
    );
}

#[tokio::test]
async fn what_fails_before_the_first_piece_has_its_status() {
    let host = Host::builder()
        .config(with_misbehave(""))
        .start()
        .await
        .ready()
        .await;
    // one a minute, which no test waits for
    let limited = host.customer_with(json!({ "rate_limit": 1 })).await;
    let customer = host.customer().await;
    let refused_to = async |customer: &Client, body: Value, status, code: &str| {
        let reply = customer.post("/generate", body).await;
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.expect_error(status), code);
    };
    let refused = async |body, status, code| refused_to(&customer, body, status, code).await;
    refused(generate(99, "x"), 404, "model_not_found").await;
    refused(generate(2, "trap"), 502, "plugin_failed").await;
    refused(
        generate(2, "fetch https://forbidden.example/"),
        502,
        "not_granted",
    )
    .await;
    let mut no_room = generate(2, PROMPT);
    no_room["max_length"] = json!(1);
    refused(no_room, 400, "context_length_exceeded").await;
    refused(generate(2, "empty"), 502, "plugin_failed").await;
    refused_to(&limited, generate(2, "trap"), 502, "plugin_failed").await;
    refused_to(&limited, generate(2, "well"), 429, "rate_limit_exceeded").await;

    let ask =
        json!({ "model": "gpt2", "prompt": PROMPT, "stream_options": { "include_usage": true } });
    let reply = customer.post("/v1/completions", ask).await;
    assert_eq!(reply.body["error"]["param"], "stream_options");
    assert_eq!(reply.expect_error(422), "invalid_request");
}

#[tokio::test]
async fn what_fails_later_is_the_last_event_and_costs_nothing() {
    let host = Host::builder()
        .config(with_misbehave("cpu_ms = 300"))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    for (path, ask) in [
        ("/generate", generate(2, "endless stream")),
        (
            "/v1/completions",
            json!({ "model": "misbehave", "prompt": "endless stream", "stream": true }),
        ),
    ] {
        let stream = customer.stream(path, ask).await;
        let id = stream.id();
        let events = stream.rest().await;
        let error = &events.last().expect("events")["error"];
        assert_eq!(
            (&error["request_id"], &error["type"]),
            (&json!(id), &json!("server_error")),
            "{error}"
        );
        assert!(events.len() > 1 && !events.contains(&json!("[DONE]")));
        let row = row(&customer, &id).await;
        assert_eq!(
            (&row["status"], &row["cost"]),
            (&json!("failed"), &json!(0.0))
        );
    }
}

/// Asks for an answer, and does not read it.
async fn unread(host: &Host, customer: &Client, body: Value, header: &str) -> TcpStream {
    // little fits between the two, so that the server soon sees that nobody reads
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = host.url().trim_start_matches("http://");
    let address = address.parse().expect("an address");
    let mut socket = socket.connect(address).await.expect("a connection");
    let body = body.to_string();
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: {address}\r\nx-api-key: {}\r\n{header}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        customer.key(),
        body.len()
    );
    socket.write_all(request.as_bytes()).await.expect("sent");
    socket
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_model_back() {
    // read to its end this answer would fail, as longer than any may be
    let limits = "timeout_ms = 5000\ncpu_ms = 60000";
    let config = with_misbehave(limits);
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;

    let _socket = unread(&host, &customer, generate(2, "endless stream"), "").await;
    let rows = async || customer.get("/usage/requests").await.expect(200);
    eventually("the request is on record", async || {
        rows().await["requests"][0].is_object()
    })
    .await;
    let row = &rows().await["requests"][0];
    assert_eq!(row["status"], "cancelled", "{row}");
    assert!(row["completion_tokens"].as_i64() < Some(1 << 20), "{row}");
}

#[tokio::test]
async fn what_may_be_asked_for_again_is_whole_though_nobody_reads_it() {
    // twice as long on its way, which is more than lies between the two
    let answer: &'static str = format!("{} ", "\"".repeat(60_000)).repeat(65).leak();
    let upstream = Upstream::start(Act::Answer(answer)).await;
    let model = lawgent(upstream.url());
    let config = format!("{GPT2}{model}[models.limits]\ntimeout_ms = 10000\n");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let header = "idempotency-key: k\r\n";
    let socket = unread(&host, &customer, generate(2, "Once"), header).await;
    let rows = async || customer.get("/usage/requests").await.expect(200);
    eventually("the request is on record", async || {
        rows().await["requests"][0].is_object()
    })
    .await;
    drop(socket);
    assert_eq!(rows().await["requests"][0]["status"], "ok");
    let again = customer.request(reqwest::Method::POST, "/generate");
    let again = again.header("idempotency-key", "k");
    let again = again.json(&generate(2, "Once")).send().await;
    let again = again.expect("an answer");
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert!(again.text().await.expect("events").len() > answer.len());
    let rows = rows().await;
    assert_eq!(rows["requests"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_stream_that_is_cut_off_by_a_stop_says_so_and_is_on_record() {
    let prices = "[models.price_per_million]\nprompt = 1.0\ncompletion = 1.0\n";
    let config = format!("[server]\ndrain_seconds = 0\n{}", with_misbehave(prices));
    let mut host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let mut stream = customer
        .stream("/generate", generate(2, "endless stream"))
        .await;
    stream.next().await.expect("an event");
    host.signal("TERM");
    // what follows, an error or the connection's end, is no finished answer
    while let Some(event) = stream.next().await {
        assert_ne!(event, "[DONE]");
    }
    assert!(host.wait_exit().await.success());
    let host = host.restart().await.ready().await;
    let rows = host.admin().get("/usage/requests").await.expect(200);
    let row = &rows["requests"][0];
    // which is not the client's doing: it pays for the next try alone
    assert_eq!(
        (&row["status"], &row["error_code"], &row["cost"]),
        (&json!("failed"), &json!("stopping"), &json!(0.0)),
        "{row}"
    );
    assert!(row["completion_tokens"].as_i64() > Some(0), "{row}");
}
