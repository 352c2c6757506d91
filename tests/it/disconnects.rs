//! Clients that leave, at every phase of an answer: what was produced until then
//! is charged and nothing after it, by a native model and by a component.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::harness::{Act, Client, GPT2, Host, Upstream, component, eventually, leave, nanos};

const PRICE: &str = "price_per_million = { prompt = 1.00, completion = 3.00 }\n";

/// Requests that a customer may have at work.
const PLACES: usize = 20;

/// A piece at a time: two of text, the end, and the count.
const STREAM: &[&str] = &[
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"eight by\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"tes more\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":5,\"total_tokens\":13}}\n\ndata: [DONE]\n\n",
];
const WHOLE: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi."},
  "finish_reason":"stop"}],"usage":{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13}}"#;

/// A server with GPT-2, which answers one at a time, and a component.
async fn both(act: Act) -> (Host, Upstream) {
    let upstream = Upstream::start(act).await;
    let (plugin, url) = (component("openai"), upstream.base());
    let config = format!(
        "[requests]\ncustomer = {{ concurrent = {PLACES} }}\n{GPT2}{PRICE}[models.limits]\nparallel = 1\n\
         [[models]]\nid = 2\nname = \"chatty\"\nplugin = \"{plugin}\"\napi_url = \"{url}\"\n\
         api_key = \"sk-upstream-secret\"\nmodel_name = \"upstream\"\n{PRICE}"
    );
    let host = Host::builder().config(config).start().await.ready().await;
    (host, upstream)
}

fn chat(is_streamed: bool) -> Value {
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    json!({ "model": "chatty", "messages": messages, "stream": is_streamed })
}

fn generate(max_new_tokens: u32, is_streamed: bool) -> Value {
    json!({ "model_id": 1, "text": "Once upon a time", "temperature": 0,
        "max_new_tokens": max_new_tokens, "stream": is_streamed })
}

/// Sends a request whose client waits for the answer until the task is aborted.
fn wait_for(customer: &Client, path: &str, body: &Value) -> JoinHandle<()> {
    let request = customer.request(reqwest::Method::POST, path).json(body);
    tokio::spawn(async move {
        request.send().await.expect("an answer");
    })
}

/// The latest row, once there are so many.
async fn latest(customer: &Client, count: usize) -> Value {
    let rows = of_model(customer, None, count).await;
    rows.last().expect("a row").clone()
}

/// The rows of GPT-2, once there are so many.
async fn of_gpt2(customer: &Client, count: usize) -> Vec<Value> {
    of_model(customer, Some(1), count).await
}

async fn of_model(customer: &Client, model: Option<i64>, count: usize) -> Vec<Value> {
    let all = async || {
        let rows = customer.get("/usage/requests?limit=1000").await.expect(200);
        let rows = rows["requests"]
            .as_array()
            .expect("a list")
            .clone()
            .into_iter();
        rows.filter(|row| model.is_none_or(|model| row["model_id"] == model))
            .collect::<Vec<_>>()
    };
    eventually("they are on record", async || all().await.len() == count).await;
    all().await
}

fn tokens(row: &Value) -> (i64, i64) {
    let count = |name: &str| row[name].as_i64().expect("a number");
    (count("prompt_tokens"), count("completion_tokens"))
}

/// The policy: an answer costs its tokens, an unfinished one those that were
/// produced and its prompt, and a prompt that no token answered nothing.
#[track_caller]
fn assert_charged(row: &Value) {
    let (prompt, completion) = tokens(row);
    let is_charged = row["status"] == "ok" || completion > 0;
    let cost = if is_charged {
        prompt * 1000 + completion * 3000
    } else {
        0
    };
    assert_eq!(nanos(&row["cost"]), cost, "{row}");
}

#[track_caller]
fn assert_left(row: &Value, completion_tokens: i64) {
    assert_eq!(row["status"], "cancelled", "{row}");
    assert_eq!(tokens(row).1, completion_tokens, "{row}");
    assert_charged(row);
}

#[tokio::test]
async fn of_a_component_before_the_first_token() {
    let (host, upstream) = both(Act::Stall).await;
    let customer = host.customer().await;
    for (number, is_streamed) in [true, false].into_iter().enumerate() {
        let asking = wait_for(&customer, "/v1/chat/completions", &chat(is_streamed));
        eventually("the upstream has it", async || upstream.open() == 1).await;
        asking.abort();
        assert_left(&latest(&customer, number + 1).await, 0);
        eventually("the upstream is left too", async || upstream.open() == 0).await;
    }
}

#[tokio::test]
async fn of_a_component_in_the_stream_and_after_its_last_token() {
    // eight bytes are two tokens, where nobody has counted
    for (pieces, completion_tokens) in [(1, 2), (2, 4), (3, 4)] {
        let (host, upstream) = both(Act::Stream(STREAM)).await;
        let customer = host.customer().await;
        let mut stream = customer.stream("/v1/chat/completions", chat(true)).await;
        // the third is the end, which no token comes with
        for piece in 1..=pieces.min(2) {
            let mut text = Value::Null;
            while text.as_str().is_none_or(str::is_empty) {
                let event = stream.next().await.expect("an event");
                text = event["choices"][0]["delta"]["content"].clone();
            }
            if piece < pieces {
                upstream.release(1);
            }
        }
        drop(stream);
        assert_left(&latest(&customer, 1).await, completion_tokens);
        eventually("the upstream is left too", async || upstream.open() == 0).await;
        assert_eq!(upstream.seen().len(), 1);
    }
}

/// Does it until an answer was left before its end: a machine that is slow once may come
/// to that only when the answer is whole.
async fn left_in_time(attempt: impl AsyncFn() -> bool) {
    for _ in 0..20 {
        if attempt().await {
            return;
        }
    }
    panic!("no answer was left before its end");
}

/// Waits until all these requests of the customer are at work, as an answer of the
/// other model tells, or one has ended; whether all are.
async fn at_work(customer: &Client, asking: &[JoinHandle<()>]) -> bool {
    eventually("they are at work", async || {
        let answer = customer.post("/v1/chat/completions", chat(false)).await;
        let left = PLACES - asking.len() - 1;
        let left = format!("\"customer-concurrent\";r={left}");
        answer.header("ratelimit").contains(&left) || asking.iter().any(JoinHandle::is_finished)
    })
    .await;
    asking.iter().all(|one| !one.is_finished())
}

#[tokio::test]
async fn of_a_native_model_before_the_first_token_and_in_a_whole_answer() {
    let (host, _upstream) = both(Act::Json(WHOLE)).await;
    let long = generate(900, false);
    left_in_time(async || {
        let (busy, customer) = (host.customer().await, host.customer().await);
        let first: Vec<_> = (0..8)
            .map(|_| wait_for(&busy, "/generate", &long))
            .collect();
        if !at_work(&busy, &first).await {
            for one in first {
                one.await.expect("no panic");
            }
            return false;
        }
        let waiting = [wait_for(&customer, "/generate", &long)];
        at_work(&customer, &waiting).await;
        // the model has not come to it
        waiting[0].abort();
        let left = of_gpt2(&customer, 1).await;
        assert_charged(&left[0]);

        for one in first {
            one.abort();
        }
        let rows = of_gpt2(&busy, 8).await;
        for row in &rows {
            assert!(row["status"] == "ok" || tokens(row).1 < 900, "{row}");
            assert_charged(row);
        }
        let is_left = |row: &Value| row["status"] == "cancelled";
        is_left(&left[0]) && tokens(&left[0]).1 == 0 && rows.iter().any(is_left)
    })
    .await;
}

#[tokio::test]
async fn of_a_native_model_that_had_no_room_for_them_yet() {
    // two at once, and room for the keys and values of one long answer
    let settings = "settings = { kv_cache_mib = 3, threads = 1, prompt_lookup = false }\n";
    let limits = "[models.limits]\nparallel = 2\n";
    let config = format!("{GPT2}{PRICE}{settings}{limits}");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let taken = || host.log().matches("a worker takes the request").count();
    // a machine that is slow once comes to the others when the first has ended
    for round in 0..20 {
        let mut first = customer.stream("/generate", generate(500, true)).await;
        first.next().await.expect("an event");
        assert_eq!(taken(), 3 * round + 1);
        let waiting = wait_for(&customer, "/generate", &generate(400, false));
        eventually("a worker has it", async || taken() == 3 * round + 2).await;
        waiting.abort();
        customer
            .post("/generate", generate(1, false))
            .await
            .expect(200);
        let id = first.id();
        drop(first);
        let rows = of_gpt2(&customer, 3 * (round + 1)).await;
        let [left, next, first] = &rows[3 * round..] else {
            panic!("{rows:?}");
        };
        if first["request_id"] == id.as_str() && left["status"] == "cancelled" {
            assert_left(left, 0);
            assert_eq!(tokens(next).1, 1);
            return;
        }
    }
    panic!("the next is answered only when the first has ended");
}

#[tokio::test]
async fn of_a_native_model_in_the_stream_and_after_its_last_token() {
    let (host, _upstream) = both(Act::Stall).await;
    left_in_time(async || {
        let customer = host.customer().await;
        let mut stream = customer.stream("/generate", generate(900, true)).await;
        stream.next().await.expect("an event");
        drop(stream);
        let row = &latest(&customer, 1).await;
        assert_charged(row);
        let (_, produced) = tokens(row);
        assert!((1..900).contains(&produced), "{row}");
        let is_left = row["status"] == "cancelled";
        assert!(is_left || row["status"] == "ok", "{row}");
        is_left
    })
    .await;

    let customer = host.customer().await;
    let whole = customer
        .post("/generate", generate(12, false))
        .await
        .expect(200);
    let whole = whole["response"].as_str().expect("a text");
    let mut stream = customer.stream("/generate", generate(12, true)).await;
    let mut text = String::new();
    while text.len() < whole.len() {
        let event = stream.next().await.expect("an event");
        text += event["text"].as_str().expect("a text");
    }
    drop(stream);
    // all tokens are there: whether the end was still on its way changes nothing
    let row = &latest(&customer, 2).await;
    assert_eq!(tokens(row).1, 12);
    assert_charged(row);
}

#[tokio::test]
async fn of_a_native_model_that_makes_no_more_than_was_on_its_way() {
    let settings = "settings = { prompt_lookup = false }\n";
    let config = format!("{GPT2}{PRICE}{settings}");
    let host = Host::builder().config(config).start().await.ready().await;
    left_in_time(async || {
        let customer = host.customer().await;
        let mut socket = customer.by_hand("/generate", &generate(900, true)).await;
        let mut came = Vec::new();
        while !String::from_utf8_lossy(&came).contains("\"text\"") {
            assert_ne!(socket.read_buf(&mut came).await.expect("read"), 0);
        }
        came.extend(leave(socket).await.into_bytes());
        let came = String::from_utf8(came).expect("text");
        let sent = came.matches("\"text\"").count();
        let row = &latest(&customer, 1).await;
        assert_charged(row);
        let produced = usize::try_from(tokens(row).1).expect("a count");
        // sixteen may wait for the client, and one more is in hand
        assert!(
            (sent..=sent + 17).contains(&produced),
            "{sent} were sent: {row}"
        );
        let is_left = row["status"] == "cancelled";
        assert!(is_left || row["status"] == "ok", "{row}");
        is_left
    })
    .await;
}

#[tokio::test]
async fn of_both_without_reading_a_finished_answer() {
    let (host, _upstream) = both(Act::Json(WHOLE)).await;
    let customer = host.customer().await;
    for (number, (path, body, completion_tokens)) in [
        ("/generate", generate(12, false), 12),
        ("/generate", generate(12, true), 12),
        ("/v1/chat/completions", chat(false), 5),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = customer.by_hand(path, &body).await;
        let row = &latest(&customer, number + 1).await;
        drop(socket);
        assert_eq!(
            (&row["status"], tokens(row).1),
            (&json!("ok"), completion_tokens)
        );
        assert_charged(row);
    }
}
