//! Tests of the plugin as a whole, with the checkpoints of `tests/fixtures`.

mod hub;
mod loading;
mod parity;

use std::path::PathBuf;

use plugin_sdk::{
    Backend, Completion, Error, Event, FinishReason, Params, Prompt, Request, Settings, Usage,
};

use crate::Gpt2;

/// The folder of a checkpoint.
fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name]
        .iter()
        .collect()
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn open(source: &str) -> Result<Gpt2, Error> {
    Gpt2::open(&settings(&[("model_path", source)]))
}

fn request(text: &str, params: Params) -> Request {
    Request {
        request_id: "test".to_owned(),
        model: "gpt2".to_owned(),
        prompt: Prompt::Text(text.to_owned()),
        params,
        tools: Vec::new(),
        deadline_ms: 60_000,
        ext: Vec::new(),
    }
}

/// The whole answer.
fn answer(model: &Gpt2, text: &str, params: Params) -> (String, FinishReason, Usage) {
    let mut completion = model.generate(request(text, params)).unwrap();
    let mut said = String::new();
    loop {
        let events = completion.next().unwrap();
        assert!(!events.is_empty());
        for event in events {
            match event {
                Event::Text(text) => said += &text,
                Event::Finish(finish) => return (said, finish.reason, finish.usage),
                _ => {}
            }
        }
    }
}
