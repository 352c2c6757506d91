//! The way of one request: authorise → limit → reserve → generate → settle.
//! Who calls is known before; nothing of HTTP is known here.
//!
//! From its admission on a request runs in a task of its own, so that it is
//! settled however it ends: answered, failed, or left by its client. What the
//! model produces goes to the client through a short channel: a client that
//! reads slowly slows the model down, and one that is gone stops it, unless it may
//! come back for the answer.

mod admit;
mod error;
mod generation;
mod idempotency;
mod metrics;
mod produced;
mod reserve;
mod tokens;
mod work;

use std::sync::Arc;
use std::time::Duration;

use plugin_sdk::{Extension, Params, Prompt, Tool};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::clock::Clock;
use crate::config::Requests;
use crate::limits::Limits;
use crate::models::{Current, Loader};
use crate::store::at_work::NamedRequest;
use crate::store::keys::Key;
use crate::store::{Settler, Store};

use idempotency::{AtWork, Claim, Kept};
use metrics::Metrics;
use work::Admitted;

pub use error::Error;
pub use generation::{Answer, Content, Generation, Piece};
pub use idempotency::Repeatable;

/// Pieces that a model may be ahead of its client.
const AHEAD: usize = 16;
/// The same where the answer is kept: a client that reads slowly, and then comes back for
/// it, must not find it cut short.
const AHEAD_OF_REPEAT: usize = 1 << 16;

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
    pub key: Arc<Key>,
    /// The model it is for.
    pub model: ModelRef,
    /// What to continue or answer, not empty.
    pub prompt: Prompt,
    /// Most tokens of prompt and answer together.
    pub max_length: Option<u32>,
    /// How to generate; `max_tokens` bounds the answer. Without it, the model
    /// and its configuration do.
    pub params: Params,
    /// Tools the model may call.
    pub tools: Vec<Tool>,
    /// More for the plugin, by the names that its contract knows.
    pub ext: Vec<Extension>,
    /// Whether the client reads as the model produces.
    pub is_streamed: bool,
    /// That the client may send it twice and pay once.
    pub repeatable: Option<Repeatable>,
}

/// Answers requests.
#[derive(Debug)]
pub struct Generator {
    live: Current,
    loader: Loader,
    limits: Limits,
    requests: Arc<Requests>,
    store: Store,
    settler: Settler,
    clock: Clock,
    metrics: Metrics,
    at_work: AtWork,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Generator {
    /// A generator over these parts.
    pub fn new(
        live: Current,
        loader: Loader,
        store: Store,
        settler: Settler,
        limits: Limits,
        requests: Arc<Requests>,
        clock: Clock,
    ) -> Self {
        Self {
            live,
            loader,
            limits,
            requests,
            store,
            settler,
            clock,
            metrics: Metrics::new(),
            at_work: AtWork::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// The models that are live now.
    pub fn live(&self) -> &Current {
        &self.live
    }

    /// Admits a request and sets the model to work on it. Dropping what is
    /// returned ends the work; what was produced until then is settled all the
    /// same.
    ///
    /// # Errors
    /// When it is not admitted, and so not on record: the model is unknown or
    /// not allowed, the prompt too long, a limit reached, or it repeats a request
    /// that it must not or cannot yet.
    pub async fn start(self: &Arc<Self>, ask: Ask) -> Result<Generation, Error> {
        let claim = match &ask.repeatable {
            None => None,
            Some(repeatable) => match self.repeat(&ask, repeatable).await? {
                Repeat::Again(generation) => return Ok(generation),
                Repeat::First(claim) => Some(claim),
            },
        };
        let live = self.live.load();
        let found = match &ask.model {
            ModelRef::Id(id) => live.by_id(*id),
            ModelRef::Name(name) => live.by_name(name),
        };
        let model = found.cloned().ok_or(Error::UnknownModel)?;
        if !ask.key.may_use(model.spec.id) {
            return Err(Error::ModelNotAllowed);
        }
        let (bytes, limit) = (tokens::bytes(&ask), model.spec.limits.max_prompt_bytes);
        if bytes > limit {
            return Err(Error::PromptTooLong { bytes, limit });
        }
        let (standings, permit) = self.admit(&ask, &model).await?;
        let claim = match (claim, &ask.repeatable) {
            // only now, so that what the limits refuse writes nothing
            (Some(claim), Some(asked)) if self.store.is_shared() => {
                match self.share(claim, &ask, asked).await {
                    Ok(Repeat::First(claim)) => Some(claim),
                    Ok(Repeat::Again(generation)) => {
                        permit.settle(0).await;
                        return Ok(generation);
                    }
                    Err(error) => {
                        permit.settle(0).await;
                        return Err(error);
                    }
                }
            }
            (claim, _) => claim,
        };
        let admitted = Admitted {
            ask,
            model,
            permit,
            at: self.clock.now(),
            since: Instant::now(),
        };
        let left = self.stopping.child_token();
        let leaves = left.clone().drop_guard();
        let (sender, pieces) = mpsc::channel(match claim {
            None => AHEAD,
            Some(_) => AHEAD_OF_REPEAT,
        });
        // it is large, and moved several times until it is a task
        let work = Box::pin(Arc::clone(self).execute(admitted, sender, left));
        let task = self.tasks.spawn(
            async move {
                let answer = work.await;
                if let Some(claim) = claim {
                    claim.end(answer.is_ok()).await;
                }
                answer
            }
            .in_current_span(),
        );
        Ok(Generation::new(standings, pieces, task, leaves))
    }

    /// Whether a request was answered before, or this is the first of its name here.
    async fn repeat(&self, ask: &Ask, asked: &Repeatable) -> Result<Repeat, Error> {
        let api_key_id = ask.key.id;
        // before the look at what is kept, or both could miss the other's answer
        let claim = self.at_work.claim(api_key_id, asked)?;
        Ok(match self.kept(api_key_id, asked).await? {
            Some(again) => Repeat::Again(again),
            None => Repeat::First(claim),
        })
    }

    /// Takes the name from the other servers too, unless one has it or has answered.
    async fn share(&self, claim: Claim, ask: &Ask, asked: &Repeatable) -> Result<Repeat, Error> {
        let request = NamedRequest {
            request_id: ask.request_id.clone(),
            api_key_id: ask.key.id,
            idempotency_key: asked.key.clone(),
            fingerprint: asked.fingerprint,
        };
        let shared = claim.share(self.store.clone(), self.settler.clone(), request);
        // a task goes on if the client leaves
        let claim = tokio::spawn(shared.in_current_span()).await;
        let claim = claim.map_err(|_| Error::Stopping)??;
        // another server may have answered since the look
        match self.kept(ask.key.id, asked).await? {
            Some(again) => {
                claim.end(false).await;
                Ok(Repeat::Again(again))
            }
            None => Ok(Repeat::First(claim)),
        }
    }

    /// The answer to the request that is kept, if any is.
    async fn kept(&self, api_key_id: i64, asked: &Repeatable) -> Result<Option<Generation>, Error> {
        let kept = self
            .store
            .kept_answer(api_key_id, &asked.key, self.clock.now());
        let Some((fingerprint, answer)) = kept.await.map_err(|_| Error::NotRecorded)? else {
            return Ok(None);
        };
        if fingerprint != asked.fingerprint {
            return Err(Error::KeyReused);
        }
        let kept: Kept = serde_json::from_str(&answer).map_err(|_| Error::NotRecorded)?;
        Ok(Some(Generation::replay(kept)))
    }

    /// Deletes answers that were kept long enough, now and once a minute, until
    /// `stop` is cancelled.
    pub async fn forget_answers_until(self: Arc<Self>, stop: CancellationToken) {
        let mut minutes = tokio::time::interval(Duration::from_secs(60));
        while stop.run_until_cancelled(minutes.tick()).await.is_some() {
            let forgetting = self.store.forget_answers(self.clock.now());
            if let Some(Err(error)) = stop.run_until_cancelled(forgetting).await {
                tracing::warn!(%error, "old answers are not deleted");
            }
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
}

/// What a request that may be repeated turns out to be.
enum Repeat {
    /// The first of its name, which is in use until this is dropped.
    First(Claim),
    /// Answered before.
    Again(Generation),
}
