//! The clients: as many requests at once, of one schedule, through HTTP or without.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use plugin_sdk::{Backend, Completion, Event, Params, Prompt};
use serde_json::json;
use tokio::task::JoinSet;
use transformer::Transformer;

use crate::harness::Client;
use crate::schedule::{Ask, request};

/// The number of the model in the server.
pub const MODEL: i64 = 1;

/// What a client saw of a request.
#[derive(Debug, Default)]
pub struct Answer {
    /// When it was sent, from the beginning on, and when each piece of text came.
    pub sent: Duration,
    pub pieces: Vec<Duration>,
    pub ended: Duration,
    pub text: String,
    /// As the answer says itself.
    pub prompt_tokens: u64,
    pub new_tokens: u64,
}

/// The requests that are left, for clients to take in turn.
struct Asks {
    asks: Arc<Vec<Ask>>,
    next: AtomicUsize,
    begun: Instant,
}

impl Asks {
    fn new(asks: &Arc<Vec<Ask>>) -> Arc<Self> {
        Arc::new(Self {
            asks: Arc::clone(asks),
            next: AtomicUsize::new(0),
            begun: Instant::now(),
        })
    }

    /// The next one, its number, and how long until it comes.
    fn take(&self) -> Option<(usize, &Ask, Duration)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ask = self.asks.get(number)?;
        Some((number, ask, ask.at.saturating_sub(self.begun.elapsed())))
    }
}

/// The answers of the server, in the order of the requests.
pub async fn through_http(customer: &Client, asks: &Arc<Vec<Ask>>, clients: usize) -> Vec<Answer> {
    let asks = Asks::new(asks);
    let mut asking = JoinSet::new();
    for _ in 0..clients {
        let (asks, customer) = (Arc::clone(&asks), customer.clone());
        asking.spawn(async move {
            let mut answers = Vec::new();
            while let Some((number, ask, wait)) = asks.take() {
                tokio::time::sleep(wait).await;
                answers.push((number, stream(&customer, ask, asks.begun).await));
            }
            answers
        });
    }
    in_order(asking.join_all().await)
}

async fn stream(customer: &Client, ask: &Ask, begun: Instant) -> Answer {
    let mut answer = Answer {
        sent: begun.elapsed(),
        ..Answer::default()
    };
    let body = json!({
        "text": ask.prompt, "model_id": MODEL, "max_new_tokens": ask.new_tokens,
        "temperature": 0, "stream": true,
    });
    let mut events = customer.stream("/generate", body).await;
    while let Some(event) = events.next().await {
        answer.ended = begun.elapsed();
        if let Some(text) = event["text"].as_str() {
            answer.pieces.push(answer.ended);
            answer.text += text;
        } else if let Some(tokens) = event["completion_tokens"].as_u64() {
            answer.new_tokens = tokens;
            answer.prompt_tokens = event["prompt_tokens"].as_u64().unwrap_or_default();
        }
    }
    answer
}

/// The answers of the model itself, in this process.
pub fn by_itself(model: &Arc<Transformer>, asks: &Arc<Vec<Ask>>, clients: usize) -> Vec<Answer> {
    let asks = Asks::new(asks);
    let client = || {
        let (asks, model) = (Arc::clone(&asks), Arc::clone(model));
        thread::spawn(move || {
            let mut answers = Vec::new();
            while let Some((number, ask, wait)) = asks.take() {
                thread::sleep(wait);
                answers.push((number, generate(&model, ask, asks.begun)));
            }
            answers
        })
    };
    let threads: Vec<_> = (0..clients).map(|_| client()).collect();
    let answers = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"));
    in_order(answers.collect())
}

fn generate(model: &Transformer, ask: &Ask, begun: Instant) -> Answer {
    let mut answer = Answer {
        sent: begun.elapsed(),
        ..Answer::default()
    };
    let params = Params {
        max_tokens: Some(ask.new_tokens),
        temperature: Some(0.0),
        ..Params::default()
    };
    let prompt = Prompt::Text(ask.prompt.clone());
    let mut completion = model.generate(request(prompt, params)).expect("accepted");
    loop {
        let events = completion.next().expect("a step");
        answer.ended = begun.elapsed();
        for event in events {
            match event {
                Event::Text(text) => {
                    answer.pieces.push(answer.ended);
                    answer.text += &text;
                }
                Event::Finish(finish) => {
                    answer.new_tokens = u64::from(finish.usage.completion_tokens);
                    answer.prompt_tokens = u64::from(finish.usage.prompt_tokens);
                    return answer;
                }
                _ => {}
            }
        }
    }
}

fn in_order(answers: Vec<Vec<(usize, Answer)>>) -> Vec<Answer> {
    let mut answers: Vec<_> = answers.into_iter().flatten().collect();
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}
