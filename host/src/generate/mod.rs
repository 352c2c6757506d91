//! The way of one request: authorise → limit → generate → settle → record.
//! Who calls is known before; nothing of HTTP is known here.
//!
//! From its admission on a request runs in a task of its own, so that it is
//! settled however it ends: answered, failed, or left by its client.

mod error;
mod metrics;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use plugin_sdk::{
    CountSource, Error as PluginError, ErrorKind, Event, FinishReason, Params, Prompt,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::clock::Clock;
use crate::limits::{Exceeded, Limits, Rate};
use crate::models::{Backend, Completion, Current, Loader, Model};
use crate::money::NanoDollars;
use crate::store::keys::Key;
use crate::store::usage::{Status, Usage};
use crate::store::{self, Settler};

use metrics::Metrics;

pub use error::Error;

/// New tokens where the request says nothing of length.
const DEFAULT_NEW_TOKENS: u32 = 100;
/// Bytes of text to a token, where nobody counts: what English comes to.
const BYTES_PER_TOKEN: usize = 4;
/// Longest answer, in bytes, whatever a plugin sends.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Tokens that a provider's template may add to a prompt.
const TEMPLATE_TOKENS: usize = 1024;

/// Which model is asked.
#[derive(Clone, Debug)]
pub enum ModelRef {
    /// By number.
    Id(i64),
    /// By name.
    Name(String),
}

/// A request, valid in itself.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Unique; the usage row's.
    pub request_id: String,
    /// The key it came with.
    pub key: Key,
    /// The model it is for.
    pub model: ModelRef,
    /// The text to continue, not empty.
    pub prompt: String,
    /// Most tokens of prompt and answer together.
    pub max_length: Option<u32>,
    /// How to generate; `max_tokens` bounds the answer.
    pub params: Params,
}

/// An answer whose usage is on record.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Number of the model.
    pub model_id: i64,
    /// Name of the model.
    pub model_name: String,
    /// The continuation, without the prompt.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// What it cost.
    pub cost: NanoDollars,
}

/// How a request ended, with what is left of its rate once that was counted.
#[derive(Debug)]
pub struct Outcome {
    /// What is left.
    pub rate: Option<Rate>,
    /// The answer or why there is none.
    pub result: Result<Answer, Error>,
}

/// Answers requests; clones share everything.
#[derive(Clone, Debug)]
pub struct Generator {
    live: Current,
    loader: Loader,
    limits: Arc<Limits>,
    settler: Settler,
    clock: Clock,
    metrics: Metrics,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// What was produced so far.
#[derive(Debug, Default)]
struct Produced {
    text: String,
    prompt_tokens: u32,
    completion_tokens: u32,
    source: Option<CountSource>,
    digest: Option<String>,
}

/// A request that the limits admitted.
struct Admitted {
    ask: Ask,
    model: Arc<Model>,
    at: OffsetDateTime,
    since: Instant,
}

impl Generator {
    /// A generator over these parts.
    pub fn new(live: Current, loader: Loader, settler: Settler, clock: Clock) -> Self {
        Self {
            live,
            loader,
            limits: Arc::default(),
            settler,
            clock,
            metrics: Metrics::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// The models that are live now.
    pub fn live(&self) -> &Current {
        &self.live
    }

    /// Answers a request. Dropping the future ends the generation; what was
    /// produced until then is settled all the same.
    pub async fn run(&self, ask: Ask) -> Outcome {
        let live = self.live.take();
        let found = match &ask.model {
            ModelRef::Id(id) => live.by_id(*id),
            ModelRef::Name(name) => live.by_name(name),
        };
        let refused = |error| Outcome {
            rate: None,
            result: Err(error),
        };
        let Some(model) = found.cloned() else {
            return refused(Error::UnknownModel);
        };
        if !ask.key.allowed_models.contains(&model.spec.id) {
            return refused(Error::ModelNotAllowed);
        }
        let limit = model.spec.limits.max_prompt_bytes;
        if ask.prompt.len() > limit {
            return refused(Error::PromptTooLong {
                bytes: ask.prompt.len(),
                limit,
            });
        }
        let rate = match self.admit(&ask.key, &model) {
            Ok(rate) => rate,
            Err(exceeded) => {
                self.metrics.refused(&model.spec.name);
                return Outcome {
                    rate: Some(exceeded.rate),
                    result: Err(Error::RateLimited(exceeded)),
                };
            }
        };
        let admitted = Admitted {
            ask,
            model,
            at: self.clock.now(),
            since: Instant::now(),
        };
        let left = self.stopping.child_token();
        let generator = self.clone();
        let task = generator.execute(admitted, left.clone()).in_current_span();
        let _leaves_on_drop = left.drop_guard();
        let result = match self.tasks.spawn(task).await {
            Ok(result) => result,
            Err(_) => Err(Error::Stopping),
        };
        Outcome {
            rate: Some(rate),
            result,
        }
    }

    /// Ends all generation; what was produced until then is settled.
    pub fn cut_off(&self) {
        self.stopping.cancel();
    }

    /// Waits until every request that was admitted is settled.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn admit(&self, key: &Key, model: &Model) -> Result<Rate, Exceeded> {
        let most = model.spec.limits.requests_per_minute.unwrap_or(u32::MAX);
        let per_minute = NonZeroU32::new(key.rate_limit.min(most)).unwrap_or(NonZeroU32::MIN);
        self.limits.admit(key.id, model.spec.id, per_minute)
    }

    async fn execute(self, admitted: Admitted, left: CancellationToken) -> Result<Answer, Error> {
        let mut produced = Produced::default();
        let timeout = Duration::from_millis(admitted.model.spec.limits.timeout_ms.into());
        let work = self.produce(&admitted, &mut produced);
        // a bug in the pipeline ends one request, and that is settled too
        let work = std::panic::AssertUnwindSafe(tokio::time::timeout(timeout, work)).catch_unwind();
        let end = tokio::select! {
            biased;
            () = left.cancelled() => Err(failure(ErrorKind::Cancelled, "the client left")),
            end = work => match end {
                Ok(Ok(end)) => end,
                Ok(Err(_)) => Err(failure(ErrorKind::Timeout, "the model took too long")),
                Err(_) => Err(failure(ErrorKind::Internal, "the request failed")),
            },
        };
        self.settle(admitted, produced, end).await
    }

    /// Runs the model, keeping `produced` up to date.
    async fn produce(
        &self,
        admitted: &Admitted,
        produced: &mut Produced,
    ) -> Result<FinishReason, Error> {
        let Admitted { ask, model, .. } = admitted;
        let backend = model.backend(&self.loader).await.map_err(Error::Plugin)?;
        produced.digest = backend.digest().map(str::to_owned);
        // waiting for the model has taken its part
        let waited = u32::try_from(admitted.since.elapsed().as_millis()).unwrap_or(u32::MAX);
        let mut request = plugin_sdk::Request {
            request_id: ask.request_id.clone(),
            model: model
                .spec
                .model_name
                .clone()
                .unwrap_or_else(|| model.spec.name.clone()),
            prompt: Prompt::Text(ask.prompt.clone()),
            params: ask.params.clone(),
            tools: Vec::new(),
            deadline_ms: model.spec.limits.timeout_ms.saturating_sub(waited),
            ext: Vec::new(),
        };
        produced.prompt_tokens = prompt_tokens(&backend, &request).await?;
        let max_tokens = room(ask, model, &backend, produced.prompt_tokens)?;
        request.params.max_tokens = Some(max_tokens);
        let most_prompt_tokens =
            u32::try_from(ask.prompt.len() + TEMPLATE_TOKENS).unwrap_or(u32::MAX);

        let mut completion = backend.generate(request).await.map_err(Error::Plugin)?;
        loop {
            for event in next(&mut completion).await? {
                let usage = match &event {
                    Event::Usage(usage) => Some(usage),
                    Event::Finish(finish) => Some(&finish.usage),
                    _ => None,
                };
                if let Some(usage) = usage {
                    // a plugin's count is taken within what the request allows
                    produced.prompt_tokens = usage.prompt_tokens.min(most_prompt_tokens);
                    produced.completion_tokens = usage.completion_tokens.min(max_tokens);
                    produced.source = Some(usage.source);
                }
                match event {
                    Event::Text(text) => produced.text.push_str(&text),
                    Event::Finish(finish) => return Ok(finish.reason),
                    Event::Usage(_)
                    | Event::Reasoning(_)
                    | Event::ToolCall(_)
                    | Event::Other(_) => {}
                }
            }
            if produced.text.len() > MAX_ANSWER_BYTES {
                return Err(failure(ErrorKind::Upstream, "the answer is too long"));
            }
        }
    }

    /// Puts the request on record; only then is there an answer.
    async fn settle(
        &self,
        admitted: Admitted,
        produced: Produced,
        end: Result<FinishReason, Error>,
    ) -> Result<Answer, Error> {
        let Admitted {
            ask,
            model,
            at,
            since,
        } = admitted;
        let spec = &model.spec;
        let status = match &end {
            Ok(_) => Status::Ok,
            Err(Error::Plugin(error)) if error.kind == ErrorKind::Cancelled => Status::Cancelled,
            Err(_) => Status::Failed,
        };
        let completion_tokens = match produced.source {
            Some(_) => produced.completion_tokens,
            None => tokens_of(&produced.text),
        };
        let is_charged = match status {
            Status::Ok => true,
            // a prompt that no token answered yet is not charged
            Status::Cancelled => completion_tokens > 0,
            Status::Failed => false,
        };
        let cost = if is_charged {
            spec.price_per_million
                .of(produced.prompt_tokens, completion_tokens)
        } else {
            NanoDollars::default()
        };
        let usage = Usage {
            request_id: ask.request_id,
            customer_id: ask.key.customer_id,
            api_key_id: ask.key.id,
            model_id: spec.id,
            model_name: spec.name.clone(),
            plugin_digest: produced.digest,
            prompt_tokens: produced.prompt_tokens,
            completion_tokens,
            tokens_estimated: produced.source != Some(CountSource::Exact),
            price: spec.price_per_million,
            cost,
            status,
            error_code: end.as_ref().err().map(|error| error.code().to_owned()),
            latency_ms: i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX),
            created_at: at,
        };
        self.metrics.settled(&usage);
        log(&usage, end.as_ref().err());
        self.settler
            .settle(usage)
            .await
            .map_err(|error| match error {
                store::Error::Stopping => Error::Stopping,
                _ => Error::NotRecorded,
            })?;
        Ok(Answer {
            model_id: spec.id,
            model_name: spec.name.clone(),
            finish_reason: end?,
            text: produced.text,
            prompt_tokens: produced.prompt_tokens,
            completion_tokens,
            cost,
        })
    }
}

async fn next(completion: &mut Completion) -> Result<Vec<Event>, Error> {
    let events = completion.next().await.map_err(Error::Plugin)?;
    if events.is_empty() {
        return Err(failure(ErrorKind::Upstream, "the plugin reported nothing"));
    }
    Ok(events)
}

/// Tokens of the prompt: counted by the plugin or, if it does not, guessed.
async fn prompt_tokens(backend: &Backend, request: &plugin_sdk::Request) -> Result<u32, Error> {
    match backend.estimate(request).await {
        Ok(estimate) => Ok(estimate.prompt_tokens),
        Err(error) if error.kind == ErrorKind::Unsupported => Ok(match &request.prompt {
            Prompt::Text(text) => tokens_of(text),
            Prompt::Chat(_) => 0,
        }),
        Err(error) => Err(Error::Plugin(error)),
    }
}

fn tokens_of(text: &str) -> u32 {
    u32::try_from(text.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// Most new tokens: what the request, the model and the configuration all allow.
fn room(ask: &Ask, model: &Model, backend: &Backend, prompt_tokens: u32) -> Result<u32, Error> {
    let mut most = model.spec.limits.max_new_tokens;
    most = most.min(match (ask.params.max_tokens, ask.max_length) {
        (Some(tokens), _) => tokens,
        (None, Some(_)) => u32::MAX,
        (None, None) => DEFAULT_NEW_TOKENS,
    });
    let bounds = [
        ("the context window", backend.context_window()),
        ("max_length", ask.max_length),
    ];
    for (bound, limit) in bounds {
        let Some(limit) = limit else { continue };
        let left = limit.checked_sub(prompt_tokens).filter(|&left| left > 0);
        most = most.min(left.ok_or(Error::NoRoom {
            prompt_tokens,
            bound,
            limit,
        })?);
    }
    Ok(most)
}

fn failure(kind: ErrorKind, message: &str) -> Error {
    Error::Plugin(PluginError::new(kind, message))
}

/// One line for each request; the detail of an error is for the operator alone.
fn log(usage: &Usage, error: Option<&Error>) {
    let detail = match error {
        Some(Error::Plugin(error)) => error.detail.as_deref(),
        _ => None,
    };
    tracing::info!(
        model = usage.model_name,
        customer_id = usage.customer_id,
        api_key_id = usage.api_key_id,
        prompt_tokens = usage.prompt_tokens,
        completion_tokens = usage.completion_tokens,
        cost_nano = usage.cost.0,
        latency_ms = usage.latency_ms,
        status = usage.status.as_str(),
        error = error.map(tracing::field::display),
        detail,
        "generated"
    );
}
