//! What is measured of an engine, by OpenTelemetry.

use opentelemetry::metrics::{Counter, Gauge};
use opentelemetry::{KeyValue, global};

use super::pages::Pages;

/// The instruments of one engine. At its end they tell that nothing is left.
#[derive(Debug)]
pub(super) struct Meter {
    model: KeyValue,
    sequences: Gauge<u64>,
    pages: Gauge<u64>,
    prompt: Counter<u64>,
    guesses: Counter<u64>,
}

impl Meter {
    /// Instruments of the global meter, for the model called `model`.
    pub(super) fn new(model: &str) -> Self {
        let meter = global::meter("model-host");
        Self {
            model: KeyValue::new("model", model.to_owned()),
            sequences: meter
                .u64_gauge("model_host.engine.sequences")
                .with_description("sequences in the batch, and those that wait for pages")
                .build(),
            pages: meter
                .u64_gauge("model_host.kv_cache.pages")
                .with_description(
                    "pages of keys and values: set aside by sequences, shared by prompts, free",
                )
                .build(),
            prompt: meter
                .u64_counter("model_host.prefix_cache.tokens")
                .with_unit("{token}")
                .with_description("tokens of prompts: in shared pages (hit), or computed (miss)")
                .build(),
            guesses: meter
                .u64_counter("model_host.prompt_lookup.tokens")
                .with_unit("{token}")
                .with_description("tokens guessed by prompt lookup: right (hit), or not (miss)")
                .build(),
        }
    }

    /// A sequence begins of whose prompt so many tokens were in shared pages, and
    /// so many were not.
    pub(super) fn began(&self, hit: usize, miss: usize) {
        self.prompt.add(hit as u64, &self.with("result", "hit"));
        self.prompt.add(miss as u64, &self.with("result", "miss"));
    }

    /// So many tokens were guessed rightly, and so many wrongly.
    pub(super) fn guessed(&self, [right, wrong]: [u64; 2]) {
        if right + wrong > 0 {
            self.guesses.add(right, &self.with("result", "hit"));
            self.guesses.add(wrong, &self.with("result", "miss"));
        }
    }

    /// How full the engine is.
    pub(super) fn tell(&self, running: usize, waiting: usize, pages: &Pages) {
        let (capacity, reserved, shared) = pages.counts();
        self.record(running, waiting, [capacity, reserved, shared]);
    }

    fn record(&self, running: usize, waiting: usize, [capacity, reserved, shared]: [usize; 3]) {
        let states = [("running", running), ("waiting", waiting)];
        for (state, count) in states {
            self.sequences
                .record(count as u64, &self.with("state", state));
        }
        let free = capacity - reserved - shared;
        for (state, count) in [("reserved", reserved), ("shared", shared), ("free", free)] {
            self.pages.record(count as u64, &self.with("state", state));
        }
    }

    fn with(&self, key: &'static str, value: &'static str) -> [KeyValue; 2] {
        [self.model.clone(), KeyValue::new(key, value)]
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.record(0, 0, [0; 3]);
    }
}
