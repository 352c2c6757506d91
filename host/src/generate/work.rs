//! The part of a request's way that is a task of its own: reserve → generate →
//! settle.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use plugin_sdk::{CountSource, ErrorKind, Event, Extension, FinishReason, Usage as PluginUsage};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::idempotency::Kept;
use super::produced::Produced;
use super::reserve::{Bounds, Room};
use super::{Answer, Ask, Content, Error, Generator, Piece, Repeatable, tokens};
use crate::cohort::behind_others;
use crate::limits::Permit;
use crate::models::{Completion, Model};
use crate::money::{NanoDollars, Price};
use crate::store::answers::KeptAnswer;
use crate::store::usage::{Status, Usage};
use crate::store::{self, Settlement};

/// How long before the end of its time a request may be told that it is over.
const SLACK: Duration = Duration::from_millis(100);

/// A request that the limits admitted.
pub(super) struct Admitted {
    pub(super) ask: Ask,
    pub(super) model: Arc<Model>,
    pub(super) permit: Permit,
    pub(super) at: OffsetDateTime,
    pub(super) since: Instant,
}

impl Generator {
    /// Does the work of one request; `pieces` closes before the answer is on
    /// record.
    pub(super) async fn execute(
        self: Arc<Self>,
        admitted: Admitted,
        pieces: mpsc::Sender<Piece>,
        left: CancellationToken,
    ) -> Result<Answer, Error> {
        let is_streamed = admitted.ask.is_streamed;
        let is_repeatable = admitted.ask.repeatable.is_some();
        let mut produced = Produced::new(is_repeatable);
        let timeout = Duration::from_millis(admitted.model.spec.limits.timeout_ms.into());
        let work = self.produce(&admitted, &mut produced, pieces);
        // a bug in the pipeline ends one request, and that is settled too
        let work = AssertUnwindSafe(tokio::time::timeout(timeout, work)).catch_unwind();
        let gone = async {
            if is_repeatable {
                self.stopping.cancelled().await;
            } else {
                left.cancelled().await;
            }
        };
        let end = tokio::select! {
            biased;
            // a stop of the server's is not the client's doing
            () = gone => Err(match self.stopping.is_cancelled() {
                true => Error::Stopping,
                false => Error::LEFT,
            }),
            end = work => match end {
                Ok(Ok(end)) => end,
                Ok(Err(_)) => Err(Error::plugin(ErrorKind::Timeout, "the model took too long")),
                Err(_) => Err(Error::plugin(ErrorKind::Internal, "the request failed")),
            },
        };
        // of a stream, and not only that of an upstream, which says the same
        let is_time_over = is_streamed
            && matches!(&end, Err(Error::Plugin(error)) if error.kind == ErrorKind::Timeout)
            && admitted.since.elapsed() + SLACK >= timeout;
        let end = match end {
            // what it was sent and did not read is not the model's fault
            Err(_) if is_time_over && produced.is_held_up(timeout) => {
                Err(Error::Left("did not read in time"))
            }
            end => end,
        };
        if let Err(error @ Error::Capped { .. }) = end {
            self.metrics
                .refused(&admitted.model.spec.name, error.code());
            // no model was asked
            admitted.permit.settle(0).await;
            return Err(error);
        }
        // a client that may ask for it again is not to pay twice
        let is_delivered =
            is_time_over && !is_repeatable && produced.bytes > 0 && !left.is_cancelled();
        self.settle(admitted, produced.counted(), end, is_delivered)
            .await
    }

    /// Runs the model, keeping `produced` up to date.
    async fn produce(
        &self,
        admitted: &Admitted,
        produced: &mut Produced,
        pieces: mpsc::Sender<Piece>,
    ) -> Result<FinishReason, Error> {
        let Admitted { ask, model, .. } = admitted;
        let backend = model.backend(&self.loader).await.map_err(Error::Plugin)?;
        produced.digest = backend.digest().map(str::to_owned);
        let mut request = request(admitted);
        let left = Duration::from_millis(request.deadline_ms.into());
        let mut session = backend
            .session(ask.key.id, left)
            .await
            .map_err(Error::Plugin)?;
        let estimated = tokens::of_prompt(&mut session, &request)
            .await
            .map_err(Error::Plugin)?;
        let estimate = estimated.unwrap_or_else(|| tokens::guessed(ask));
        produced.usage.prompt_tokens = estimate.prompt_tokens;
        let is_guess = estimate.source == CountSource::Estimated;
        let most_new = tokens::room(ask, model, &backend, estimate.prompt_tokens, is_guess)?;
        produced.bounds = Bounds::new(admitted, estimate, most_new);
        self.reserve(admitted, &mut produced.bounds, &mut produced.room)
            .await?;
        request.params.max_tokens = Some(produced.bounds.new_tokens);

        let mut completion = session.generate(request).await.map_err(Error::Plugin)?;
        loop {
            for event in next(&mut completion).await? {
                match event {
                    Event::Text(text) => produced.pass_on(&pieces, Piece::Text(text)).await?,
                    Event::Reasoning(text) => {
                        produced.pass_on(&pieces, Piece::Reasoning(text)).await?;
                    }
                    Event::ToolCall(call) => {
                        produced.pass_on(&pieces, Piece::ToolCall(call)).await?;
                    }
                    Event::Usage(usage) => produced.count(usage),
                    Event::Finish(finish) => {
                        produced.finish(finish.usage);
                        produced.ended = Some(completion);
                        return Ok(finish.reason);
                    }
                    Event::Other(_) => {}
                }
            }
            if produced.is_beyond_what_is_held() {
                return Ok(FinishReason::Length);
            }
        }
    }

    /// Puts the request on record; only then is there an answer. `is_delivered` tells whether
    /// its time was over and the client has what was streamed until then.
    async fn settle(
        &self,
        admitted: Admitted,
        produced: Produced,
        end: Result<FinishReason, Error>,
        is_delivered: bool,
    ) -> Result<Answer, Error> {
        let Admitted {
            ask,
            model,
            permit,
            at,
            since,
        } = admitted;
        let (spec, used) = (&model.spec, produced.usage);
        produced.warn_of_beyond(&spec.name);
        let status = match &end {
            Ok(_) => Status::Ok,
            Err(Error::Left(_)) => Status::Cancelled,
            Err(_) if is_delivered => Status::Cancelled,
            Err(_) => Status::Failed,
        };
        let Room { held, capped_by } = produced.room;
        // the bounds see to it already; what is held is all that there is
        let cost = charge(spec.price_per_million, used, status);
        let cost = cost.min(held.unwrap_or(cost));
        let usage = Arc::new(Usage {
            request_id: ask.request_id,
            customer_id: ask.key.customer_id,
            api_key_id: ask.key.id,
            model_id: spec.id,
            model_name: spec.name.clone(),
            plugin_digest: produced.digest,
            prompt_tokens: used.prompt_tokens,
            completion_tokens: used.completion_tokens,
            tokens_estimated: used.source != CountSource::Exact,
            price: spec.price_per_million,
            cost,
            status,
            error_code: end.as_ref().err().map(|error| error.code().to_owned()),
            latency_ms: i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX),
            created_at: at,
        });
        let answer = end.map(|finish_reason| Answer {
            model_id: spec.id,
            model_name: spec.name.clone(),
            finish_reason,
            usage: used,
            cost,
            limited_by: capped_by.filter(|_| finish_reason == FinishReason::Length),
        });
        let kept = match (&answer, produced.content, ask.repeatable) {
            (Ok(answer), Some(content), Some(repeatable)) => {
                Some(self.kept_as(repeatable, &usage, answer, content))
            }
            // what failed or was stopped may be tried again
            _ => None,
        };
        let settlement = Settlement {
            usage: Arc::clone(&usage),
            answer: kept,
            is_held: held.is_some(),
        };
        let mut ended = produced.ended;
        // free for another request meanwhile; to make the next instance would be in the way
        if let Some(ended) = ended.take_if(|completion| completion.is_kept()) {
            tokio::spawn(ended.end());
        }
        let settled = self.settler.settle(settlement).await;
        // before the client knows the end: its next request finds all of it free
        permit
            .settle(used.prompt_tokens.saturating_add(used.completion_tokens))
            .await;
        if let Some(ended) = ended {
            tokio::spawn(async {
                // the answer to this request is one of those
                behind_others().await;
                ended.end().await;
            });
        }
        let settled = settled.map_err(|error| match error {
            store::Error::Stopping => Error::Stopping,
            store::Error::TakenOver => Error::AtWork,
            _ => Error::NotRecorded,
        });
        match &settled {
            Ok(()) => self.metrics.settled(&usage),
            // it is not on record as it ended, if at all, and costs nothing
            Err(error) => self.metrics.refused(&usage.model_name, error.code()),
        }
        let answer = settled.and(answer);
        log(&usage, answer.as_ref().err());
        answer
    }

    /// The answer as its repeat will find it.
    fn kept_as(
        &self,
        asked: Repeatable,
        usage: &Usage,
        answer: &Answer,
        content: Content,
    ) -> KeptAnswer {
        KeptAnswer {
            api_key_id: usage.api_key_id,
            idempotency_key: asked.key,
            fingerprint: asked.fingerprint,
            request_id: usage.request_id.clone(),
            answer: serde_json::json!(Kept::new(content, answer)).to_string(),
            created_at: self.clock.now(),
        }
    }
}

/// What a request costs that ended so.
fn charge(price: Price, used: PluginUsage, status: Status) -> NanoDollars {
    let is_charged = match status {
        Status::Ok => true,
        // a prompt that no token answered yet is not charged
        Status::Cancelled => used.completion_tokens > 0,
        Status::Failed => false,
    };
    if is_charged {
        price.of(used.prompt_tokens, used.completion_tokens)
    } else {
        NanoDollars::default()
    }
}

/// What the plugin is asked, but for the number of new tokens.
fn request(admitted: &Admitted) -> plugin_sdk::Request {
    let Admitted {
        ask, model, since, ..
    } = admitted;
    let spec = &model.spec;
    // waiting for the model has taken its part
    let waited = u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX);
    let stream = Extension::new("stream", ask.is_streamed.to_string());
    plugin_sdk::Request {
        request_id: ask.request_id.clone(),
        model: spec.model_name.clone().unwrap_or_else(|| spec.name.clone()),
        prompt: ask.prompt.clone(),
        params: ask.params.clone(),
        tools: ask.tools.clone(),
        deadline_ms: spec.limits.timeout_ms.saturating_sub(waited),
        ext: ask.ext.iter().cloned().chain([stream]).collect(),
    }
}

async fn next(completion: &mut Completion) -> Result<Vec<Event>, Error> {
    let events = completion.next().await.map_err(Error::Plugin)?;
    if events.is_empty() {
        return Err(Error::plugin(
            ErrorKind::Upstream,
            "the plugin reported nothing",
        ));
    }
    Ok(events)
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
