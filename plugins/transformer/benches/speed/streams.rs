//! Answers in the making, and when their tokens come.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use plugin_sdk::{Backend, Completion, Event, Params, Prompt, Request, Settings};
use transformer::Transformer;

/// A model whose weights are held in `dtype`, with so much room for keys and values.
pub fn open(
    folder: &Path,
    dtype: &str,
    kv_cache_mib: usize,
    prefix_cache: bool,
) -> Arc<Transformer> {
    let pairs = [
        ("model_path", folder.to_str().expect("text").to_owned()),
        ("dtype", dtype.to_owned()),
        ("kv_cache_mib", kv_cache_mib.to_string()),
        ("prefix_cache", prefix_cache.to_string()),
        // random weights repeat themselves as no real model does
        ("prompt_lookup", "false".to_owned()),
    ];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value));
    let settings: Settings = pairs.into_iter().collect();
    Arc::new(Transformer::open(&settings).expect("the model"))
}

/// When each token of each stream came, from the beginning on; prompts are of so many
/// tokens, all different.
pub fn together(
    model: &Arc<Transformer>,
    streams: usize,
    prompt: usize,
    tokens: u32,
) -> Vec<Vec<Duration>> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|number| {
            let model = Arc::clone(model);
            thread::spawn(move || stream(&model, number, prompt, tokens, begun))
        })
        .collect();
    threads
        .into_iter()
        .map(|thread| thread.join().expect("a stream"))
        .collect()
}

fn stream(
    model: &Transformer,
    number: usize,
    prompt: usize,
    tokens: u32,
    begun: Instant,
) -> Vec<Duration> {
    // each character is a token
    let text =
        (0..prompt).map(|n| char::from(b'a' + ((n * 7 + number * 3 + n * number) % 26) as u8));
    let request = Request {
        request_id: String::new(),
        model: String::new(),
        prompt: Prompt::Text(text.collect()),
        params: Params {
            max_tokens: Some(tokens),
            temperature: Some(0.0),
            ..Params::default()
        },
        tools: Vec::new(),
        deadline_ms: u32::MAX,
        ext: Vec::new(),
    };
    let mut completion = model.generate(request).expect("accepted");
    let mut times = Vec::new();
    loop {
        let events = completion.next().expect("a step");
        times.push(begun.elapsed());
        if matches!(events.last(), Some(Event::Finish(_))) {
            return times;
        }
    }
}

/// The time in which all streams decode: from the last one's first token to the first
/// one's last.
fn shared(streams: &[Vec<Duration>]) -> (Duration, Duration) {
    let from = streams.iter().map(|times| times[0]).max();
    let to = streams.iter().map(|times| times[times.len() - 1]).min();
    (from.unwrap_or_default(), to.unwrap_or_default())
}

/// Tokens a second while all streams decode.
///
/// # Panics
/// When they never do.
pub fn rate(streams: &[Vec<Duration>]) -> f64 {
    let (from, to) = shared(streams);
    assert!(from < to, "a stream ended before all had begun");
    let tokens = streams
        .iter()
        .flatten()
        .filter(|&&time| time > from && time <= to);
    tokens.count() as f64 / (to - from).as_secs_f64()
}

/// Milliseconds between two tokens of a stream, while all decode.
pub fn gaps(streams: &[Vec<Duration>]) -> Vec<f64> {
    let (from, to) = shared(streams);
    let pairs = streams.iter().flat_map(|times| times.windows(2));
    pairs
        .filter(|pair| pair[0] >= from && pair[1] <= to)
        .map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0)
        .collect()
}
