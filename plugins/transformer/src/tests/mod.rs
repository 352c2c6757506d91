//! Tests of the plugin as a whole, with the checkpoints of `tests/fixtures`.

mod batch;
mod gguf;
mod hub;
mod loading;
mod parity;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use plugin_sdk::{
    Backend, Completion, Error, Event, FinishReason, Params, Prompt, Request, Settings, Usage,
};

use crate::Transformer;
use crate::kernels::Team;
use crate::model::{Cache, Model, Predict, Run, Workspace};

/// Takes steps of a model and reads all its predictions.
struct Runner {
    model: Model,
    workspace: Workspace,
}

impl Runner {
    fn new(model: Model) -> Self {
        let team = Team::new(NonZeroUsize::new(2).unwrap()).unwrap();
        Self {
            model,
            workspace: Workspace::new(team),
        }
    }

    /// The logits after these tokens of one sequence.
    fn logits(&mut self, tokens: &[u32], cache: &mut Cache, predict: Predict) -> Vec<Vec<f32>> {
        self.step(&mut [Run {
            tokens,
            cache,
            predict,
        }])
    }

    /// The logits of each prediction.
    fn step(&mut self, runs: &mut [Run<'_>]) -> Vec<Vec<f32>> {
        let predictions = runs.iter().map(|run| match run.predict {
            Predict::None => 0,
            Predict::Last => 1,
            Predict::All => run.tokens.len(),
        });
        let mut all = vec![Vec::new(); predictions.sum()];
        self.model.step(&mut self.workspace, runs);
        let vocab = self.model.config().vocab;
        self.workspace
            .for_predictions(&mut all, vocab, |to, logits| *to = logits.to_vec());
        all
    }
}

/// The folder of a checkpoint.
pub(crate) fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name]
        .iter()
        .collect()
}

pub(crate) fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn open(source: &str) -> Result<Transformer, Error> {
    Transformer::open(&settings(&[("model_path", source)]))
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
fn answer(model: &Transformer, text: &str, params: Params) -> (String, FinishReason, Usage) {
    answer_to(model, request(text, params))
}

fn answer_to(model: &Transformer, request: Request) -> (String, FinishReason, Usage) {
    let mut completion = model.generate(request).unwrap();
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
