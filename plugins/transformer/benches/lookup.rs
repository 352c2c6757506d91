//! What prompt lookup brings: the same answers with guesses and without.
//!
//!     cargo bench -p model-host-transformer --bench lookup -- [MODEL...]
//!
//! A model is what `model_path` takes; by default the embedded one. Prints tokens a
//! second of one stream and of four and eight together, without guesses and with them,
//! where answers repeat their prompt and where they do not: medians of five rounds in
//! turns.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use plugin_sdk::{Backend, Completion, Event, Params, Prompt, Request, Settings};
use transformer::Transformer;

const NEW_TOKENS: u32 = 128;
const ROUNDS: usize = 5;
const STREAMS: [usize; 3] = [1, 4, 8];
const PASSAGE: &str = "The harbour lies between two hills. On the northern one stands the old \
    lighthouse, on the southern one the house of the pilot, whose daughter keeps the log. Every \
    morning she writes down the wind, the tide and the names of the ships, and every evening her \
    father reads aloud what she wrote.";

fn main() {
    let models: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let models = if models.is_empty() {
        vec!["embedded".to_owned()]
    } else {
        models
    };
    println!("| model | answers | streams | without | with | ratio |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for name in models {
        let [without, with] = ["false", "true"].map(|lookup| Arc::new(open(&name, lookup)));
        let repeated = format!("{PASSAGE}\n\n{PASSAGE}\n\n{PASSAGE}\n\nThe harbour");
        for (kind, prompt, temperature) in [
            ("repeat the prompt", repeated.as_str(), 0.0),
            ("do not repeat", PASSAGE, 1.0),
        ] {
            for streams in STREAMS {
                let mut rates = [Vec::new(), Vec::new()];
                for _ in 0..ROUNDS {
                    for (model, rates) in [&without, &with].into_iter().zip(&mut rates) {
                        rates.push(rate(model, prompt, temperature, streams));
                    }
                }
                let [without, with] = rates.map(median);
                let ratio = with / without;
                println!("| {name} | {kind} | {streams} | {without:.0} | {with:.0} | {ratio:.2} |");
            }
        }
    }
}

fn open(name: &str, lookup: &str) -> Transformer {
    let pairs = [("model_path", name), ("prompt_lookup", lookup)];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings: Settings = pairs.into_iter().collect();
    Transformer::open(&settings).expect("the model")
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// New tokens a second of so many streams together, once the prompts are read.
fn rate(model: &Arc<Transformer>, prompt: &str, temperature: f32, streams: usize) -> f64 {
    let threads: Vec<_> = (0..streams)
        .map(|number| {
            let model = Arc::clone(model);
            let params = Params {
                max_tokens: Some(NEW_TOKENS),
                temperature: Some(temperature),
                seed: Some(number as u64),
                ..Params::default()
            };
            let prompt = prompt.to_owned();
            thread::spawn(move || answer(&model, prompt, params))
        })
        .collect();
    let answers = threads.into_iter().map(|thread| thread.join().expect("it"));
    let answers: Vec<_> = answers.collect();
    let first = answers.iter().map(|(first, ..)| *first).min();
    let last = answers.iter().map(|(_, last, _)| *last).max();
    let tokens: u32 = answers.iter().map(|(.., tokens)| *tokens).sum();
    let seconds = (last.expect("a stream") - first.expect("a stream")).as_secs_f64();
    f64::from(tokens) / seconds
}

/// When the first and the last token came, and how many there were.
fn answer(model: &Transformer, prompt: String, params: Params) -> (Instant, Instant, u32) {
    let request = Request {
        request_id: String::new(),
        model: String::new(),
        prompt: Prompt::Text(prompt),
        params,
        tools: Vec::new(),
        deadline_ms: u32::MAX,
        ext: Vec::new(),
    };
    let mut completion = model.generate(request).expect("accepted");
    let mut first = None;
    loop {
        let events = completion.next().expect("a token");
        let now = Instant::now();
        let first = *first.get_or_insert(now);
        for event in events {
            if let Event::Finish(finish) = event {
                return (first, now, finish.usage.completion_tokens);
            }
        }
    }
}
