//! Who asks: texts and chats, whole and streamed, some under a name
//! (`Idempotency-Key`) that they ask for again once the server is back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::books::Answers;
use crate::harness::{Client, Purse, eventually, nanos};

/// Nano-dollars of a token at the default price.
const TOKEN: i64 = 10_000;

/// Ways to ask, which take turns.
const WAYS: usize = 8;

/// Repeats at once.
const REPEATS: usize = 16;

/// Requests under names.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashMap<String, Named>>>);

/// How one was asked, and the answer where it came whole.
#[derive(Debug)]
struct Named {
    way: usize,
    answer: Option<Answer>,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    /// Nano-dollars.
    cost: i64,
    /// All of its text.
    text: String,
}

/// What became of a request.
enum Asked {
    /// Its id, and the answer.
    Answered(String, Answer),
    Refused,
    /// The connection broke.
    Lost,
}

/// One client: asks until there is nobody to ask, or it is stopped. Every second round
/// of all ways is asked under names, by the customer that does nothing else.
pub async fn ask_until_it_dies(
    purses: [Purse; 2],
    number: usize,
    (answers, names): (Answers, Names),
    stop: Arc<AtomicBool>,
) {
    for turn in number.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let way = turn % WAYS;
        let is_named = turn / WAYS % 2 == 1;
        let name = is_named.then(|| names.new_name(way));
        let customer = &purses[usize::from(is_named)].customer;
        match ask(customer, way, name.as_deref()).await {
            Asked::Answered(id, answer) => {
                answers.note(id, answer.cost);
                if let Some(name) = name {
                    names.answered(&name, answer);
                }
            }
            Asked::Refused => {}
            Asked::Lost => return,
        }
    }
}

impl Names {
    fn new_name(&self, way: usize) -> String {
        let name = format!("name-{:032x}", crate::random_bits());
        let mut names = self.0.lock().expect("no panic");
        names.insert(name.clone(), Named { way, answer: None });
        name
    }

    fn answered(&self, name: &str, answer: Answer) {
        let mut names = self.0.lock().expect("no panic");
        names.get_mut(name).expect("it was asked").answer = Some(answer);
    }

    /// Asks for all of them again, each until there is an answer. Returns how many
    /// they are.
    ///
    /// # Errors
    /// With one whose answer is another one than it was.
    pub async fn repeat(&self, purse: &Purse) -> Result<usize, String> {
        let names = std::mem::take(&mut *self.0.lock().expect("no panic"));
        let count = names.len();
        let repeats = names.into_iter().map(|(name, named)| async move {
            let Named { way, answer } = named;
            let again = Mutex::new(None);
            eventually("a repeat is answered", async || {
                if let Asked::Answered(_, answer) = ask(&purse.customer, way, Some(&name)).await {
                    *again.lock().expect("no panic") = Some(answer);
                }
                again.lock().expect("no panic").is_some()
            })
            .await;
            let again = again.into_inner().expect("no panic");
            match answer {
                Some(_) if answer != again => {
                    Err(format!("{name} was {answer:?}, and then {again:?}"))
                }
                _ => Ok(()),
            }
        });
        let mut repeats = stream::iter(repeats).buffer_unordered(REPEATS);
        while let Some(repeat) = repeats.next().await {
            repeat?;
        }
        Ok(count)
    }
}

async fn ask(customer: &Client, way: usize, name: Option<&str>) -> Asked {
    let is_streamed = way.is_multiple_of(2);
    let (path, mut body) = match way / 2 {
        model @ (0 | 1) => (
            "/generate",
            json!({ "text": "Once upon a time", "model_id": model + 1, "max_new_tokens": 4 }),
        ),
        2 => (
            "/v1/completions",
            json!({ "model": "gpt2", "prompt": "Once upon a time", "max_tokens": 4 }),
        ),
        _ => {
            let said = json!([{ "role": "user", "content": "Once upon a time" }]);
            (
                "/v1/chat/completions",
                json!({ "model": "chats", "messages": said, "max_tokens": 4 }),
            )
        }
    };
    if is_streamed {
        body["stream"] = json!(true);
    }
    if is_streamed && path != "/generate" {
        body["stream_options"] = json!({ "include_usage": true });
    }
    let mut request = customer.request(Method::POST, path).json(&body);
    if let Some(name) = name {
        request = request.header("idempotency-key", name);
    }
    let Ok(response) = request.send().await else {
        return Asked::Lost;
    };
    let id = response.headers()["x-request-id"].to_str().expect("text");
    let (id, status) = (id.to_owned(), response.status());
    let Ok(text) = response.text().await else {
        return Asked::Lost;
    };
    if status != 200 {
        return Asked::Refused;
    }
    let events = match is_streamed {
        true => text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .collect(),
        false => vec![&*text],
    };
    let events = match events.split_last() {
        Some((&"[DONE]", events)) => events,
        // a stream that is not at its end is no answer
        _ if is_streamed => return Asked::Refused,
        _ => &events,
    };
    let events = events.iter().map(|event| serde_json::from_str(event));
    let events: Vec<Value> = events.collect::<Result<_, _>>().expect("JSON");
    match Answer::of(&events) {
        Some(answer) => Asked::Answered(id, answer),
        None => Asked::Refused,
    }
}

impl Answer {
    /// Of all events of a stream, or of a whole answer; none if they end in an error.
    fn of(events: &[Value]) -> Option<Self> {
        let end = events.last()?;
        let cost = match (&end["cost"], end["usage"]["total_tokens"].as_i64()) {
            (_, Some(tokens)) => tokens * TOKEN,
            (Value::Null, None) => return None,
            (cost, None) => nanos(cost),
        };
        let places = ["/text", "/response", "/choices/0/text"];
        let chats = ["/choices/0/delta/content", "/choices/0/message/content"];
        let text = events.iter().flat_map(|event| {
            let places = places.iter().chain(&chats);
            places.filter_map(|place| event.pointer(place)?.as_str())
        });
        let text = text.collect();
        Some(Self { cost, text })
    }
}
