//! Logs always; traces and metrics over OTLP, each when `OTEL_EXPORTER_OTLP_ENDPOINT`
//! or its own sibling says where to. The exporter reads the rest of OpenTelemetry's
//! variables by itself.

use std::io::IsTerminal;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, global};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// What to log where `MODEL_HOST_LOG` does not say. Stripe's client says again
/// what billing says.
const DEFAULT_FILTER: &str = "info,stripe=off";

/// What was started, to be ended after the last request.
#[derive(Debug, Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Sends what is still held back.
    pub fn end(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
        if let Some(metrics) = self.metrics
            && let Err(error) = metrics.shutdown()
        {
            tracing::warn!(%error, "the last metrics could not be sent");
        }
    }
}

/// Starts logging and, if an endpoint is configured, exporting.
///
/// # Errors
/// When a variable has a value that cannot be used.
pub fn start() -> anyhow::Result<Telemetry> {
    let filter = variable("MODEL_HOST_LOG").unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let filter = EnvFilter::try_new(filter).context("MODEL_HOST_LOG")?;
    let is_json = match variable("MODEL_HOST_LOG_FORMAT").as_deref() {
        Some("json") => true,
        Some("text") => false,
        None => !std::io::stderr().is_terminal(),
        Some(other) => anyhow::bail!("MODEL_HOST_LOG_FORMAT: expected json or text, not {other:?}"),
    };
    let telemetry = export()?;
    let registry = tracing_subscriber::registry();
    match &telemetry.traces {
        // without filters of their own, which cost each request some microseconds
        None => registry.with(filter).with(lines(is_json)).init(),
        Some(provider) => {
            let traces = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("model-host"))
                // whatever is logged, and nothing of the exporter's own requests
                .with_filter(Targets::new().with_target("model_host", LevelFilter::INFO));
            registry
                .with(traces)
                .with(lines(is_json).with_filter(filter))
                .init();
        }
    }
    Ok(telemetry)
}

/// What is logged, to stderr.
fn lines<S>(is_json: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match is_json {
        true => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
        false => lines.with_target(false).boxed(),
    }
}

/// Starts to export what there is an endpoint for.
fn export() -> anyhow::Result<Telemetry> {
    let mut telemetry = Telemetry::default();
    if is_wanted("TRACES") {
        let spans = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .build()?;
        let traces = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(spans)
            .build();
        telemetry.traces = Some(traces);
    }
    if is_wanted("METRICS") {
        let readings = opentelemetry_otlp::MetricExporter::builder()
            .with_http()
            .build()?;
        let metrics = SdkMeterProvider::builder()
            .with_resource(resource())
            .with_periodic_exporter(readings)
            .build();
        global::set_meter_provider(metrics.clone());
        telemetry.metrics = Some(metrics);
    }
    Ok(telemetry)
}

fn is_wanted(signal: &str) -> bool {
    let own = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
    [&own, "OTEL_EXPORTER_OTLP_ENDPOINT"]
        .into_iter()
        .any(|name| variable(name).is_some())
}

/// What is said of the service, by OpenTelemetry's variables; its name also where they
/// say none.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let name = said.get(&Key::from_static_str("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if is_named {
        said
    } else {
        Resource::builder().with_service_name("model-host").build()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "telemetry starts before the configuration is read"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
