//! What is measured of requests, by OpenTelemetry.

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};

use crate::store::usage::Usage;

/// Bounds between the durations that are counted apart, in seconds: those of
/// OpenTelemetry's conventions for servers of generative models.
const DURATIONS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];

/// The instruments; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    requests: Counter<u64>,
    tokens: Counter<u64>,
    cost: Counter<u64>,
    duration: Histogram<f64>,
}

impl Metrics {
    /// Instruments of the global meter, which telemetry sets up before.
    pub(super) fn new() -> Self {
        let meter = global::meter("model-host");
        Self {
            requests: meter
                .u64_counter("model_host.requests")
                .with_description("requests by model and how they ended")
                .build(),
            tokens: meter
                .u64_counter("model_host.tokens")
                .with_unit("{token}")
                .with_description("tokens by model and kind")
                .build(),
            cost: meter
                .u64_counter("model_host.cost")
                .with_unit("{nanodollar}")
                .with_description("what was charged, in nano-dollars, by model")
                .build(),
            duration: meter
                .f64_histogram("model_host.request.duration")
                .with_unit("s")
                .with_boundaries(DURATIONS.into())
                .with_description("from admission to settlement, by model and how it ended")
                .build(),
        }
    }

    /// A request that was not let through to its model, for this reason.
    pub(super) fn refused(&self, model: &str, reason: &str) {
        self.requests.add(
            1,
            &[of_model(model), KeyValue::new("status", reason.to_owned())],
        );
    }

    /// A request at its end.
    pub(super) fn settled(&self, usage: &Usage) {
        let model = of_model(&usage.model_name);
        let ended = [
            model.clone(),
            KeyValue::new("status", usage.status.as_str()),
        ];
        self.requests.add(1, &ended);
        self.duration
            .record(usage.latency_ms as f64 / 1000.0, &ended);
        let kinds = [
            ("prompt", usage.prompt_tokens),
            ("completion", usage.completion_tokens),
        ];
        for (kind, tokens) in kinds {
            self.tokens
                .add(tokens.into(), &[model.clone(), KeyValue::new("kind", kind)]);
        }
        self.cost.add(usage.cost.0.unsigned_abs(), &[model]);
    }
}

fn of_model(name: &str) -> KeyValue {
    KeyValue::new("model", name.to_owned())
}
