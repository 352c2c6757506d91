//! What fewer bits change: how often the likeliest token is f32's, and the
//! perplexity, each token of a text being given.
//!
//!     cargo bench -p model-host-transformer --bench quality -- [--model MODEL] [FILE...]
//!
//! Measures a model, by default the embedded one, on the files' text, or, without
//! any, on text that the model in f32 makes itself from fixed prompts and seeds. A
//! GGUF's own bits are unpacked into each type: what it lost by them is in f32 too.

use clap::Parser;
use plugin_sdk::{Backend, Completion, Event, Params, Prompt, Request, Settings};
use transformer::{Score, Transformer};

const PROMPTS: [&str; 8] = [
    "Once upon a time",
    "The president said that",
    "It was a dark night and",
    "The economy of the country",
    "\"I do not know,\" said",
    "The whale",
    "My dear Emma,",
    "In the mountains",
];
const TOKENS: u32 = 480;

/// Compares what weights are held in
#[derive(Debug, Parser)]
struct Options {
    /// As in the setting `model_path`
    #[arg(long, default_value = "embedded")]
    model: String,
    /// Text to predict, in UTF-8
    files: Vec<String>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let files = options.files.iter().map(|file| {
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"))
    });
    let files: Vec<_> = files.collect();
    let reference = open(&options.model, "f32");
    let texts = if files.is_empty() {
        PROMPTS
            .iter()
            .enumerate()
            .map(|(seed, prompt)| write(&reference, prompt, seed))
            .collect()
    } else {
        files
    };
    let expected = score(&reference, &texts);
    println!("{} tokens", expected.nats.len());
    println!("| dtype | likeliest token is f32's | perplexity | change |");
    println!("| --- | --- | --- | --- |");
    println!("| `f32` | | {:.3} | |", perplexity(&expected));
    for dtype in ["f16", "bf16", "w8a16", "q8", "q4"] {
        let score = score(&open(&options.model, dtype), &texts);
        let pairs = score.likeliest.iter().zip(&expected.likeliest);
        let same = pairs.filter(|(ours, theirs)| ours == theirs).count();
        println!(
            "| `{dtype}` | {:.2} % | {:.3} | {:+.2} % |",
            100.0 * same as f64 / expected.likeliest.len() as f64,
            perplexity(&score),
            100.0 * (perplexity(&score) / perplexity(&expected) - 1.0),
        );
    }
}

fn open(model: &str, dtype: &str) -> Transformer {
    let pairs = [("model_path", model), ("dtype", dtype)];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings: Settings = pairs.into_iter().collect();
    Transformer::open(&settings).expect("the model")
}

/// The model's own text: sampled as it is, so it is neither easy nor hard for it.
fn write(model: &Transformer, prompt: &str, seed: usize) -> String {
    let request = Request {
        request_id: String::new(),
        model: String::new(),
        prompt: Prompt::Text(prompt.to_owned()),
        params: Params {
            max_tokens: Some(TOKENS),
            seed: Some(seed as u64),
            ..Params::default()
        },
        tools: Vec::new(),
        deadline_ms: u32::MAX,
        ext: Vec::new(),
    };
    let mut completion = model.generate(request).expect("accepted");
    let mut text = prompt.to_owned();
    loop {
        for event in completion.next().expect("a step") {
            match event {
                Event::Text(piece) => text += &piece,
                Event::Finish(_) => return text,
                _ => {}
            }
        }
    }
}

fn score(model: &Transformer, texts: &[String]) -> Score {
    let mut all = Score::default();
    for text in texts {
        let score = model.score(text).expect("a score");
        all.likeliest.extend(score.likeliest);
        all.nats.extend(score.nats);
    }
    all
}

fn perplexity(score: &Score) -> f64 {
    (score.nats.iter().sum::<f64>() / score.nats.len() as f64).exp()
}
