//! Requests that a client may send twice and pay once.
//!
//! The answer of a request with an `Idempotency-Key` is kept in the transaction
//! of its usage row: there is never one without the other. A repeat gets the
//! kept answer. One that comes while the first is still at work is told to try
//! again; the work goes on even if its client left, since that client will. What
//! is at work is known in memory, and where several servers share the database,
//! also there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use plugin_sdk::{CountSource, FinishReason, ToolCall, Usage};
use serde::{Deserialize, Serialize};

use super::{Answer, Content, Error, Piece};
use crate::money::NanoDollars;
use crate::store::at_work::NamedRequest;
use crate::store::ledger::Cap;
use crate::store::{Settler, Store};

/// Between two attempts to free a name.
const RETRY: Duration = Duration::from_secs(3);

/// What makes a request and its repeat the same.
#[derive(Clone, Debug)]
pub struct Repeatable {
    /// The client's name for it, unique for its API key.
    pub key: String,
    /// A hash of all that the client sent.
    pub fingerprint: [u8; 32],
}

/// An API key's number, and the client's name for a request.
type Name = (i64, String);

/// The requests at work now, by their names: what makes each the same as another.
#[derive(Clone, Debug, Default)]
pub(super) struct AtWork(Arc<Mutex<HashMap<Name, [u8; 32]>>>);

/// A name in use; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    at_work: AtWork,
    name: Name,
    shared: Option<Shared>,
}

/// A name that no other server can take.
#[derive(Debug)]
struct Shared {
    store: Store,
    request_id: String,
}

impl AtWork {
    /// Takes the request's name.
    ///
    /// # Errors
    /// [`Error::AtWork`] when it is in use for the same request, and
    /// [`Error::KeyReused`] when it is for another.
    pub(super) fn claim(&self, api_key_id: i64, asked: &Repeatable) -> Result<Claim, Error> {
        let name = (api_key_id, asked.key.clone());
        let mut names = self.0.lock();
        match names.entry(name.clone()) {
            Entry::Occupied(first) if *first.get() == asked.fingerprint => Err(Error::AtWork),
            Entry::Occupied(_) => Err(Error::KeyReused),
            Entry::Vacant(free) => {
                free.insert(asked.fingerprint);
                Ok(Claim {
                    at_work: self.clone(),
                    name,
                    shared: None,
                })
            }
        }
    }
}

impl Claim {
    /// Takes the name from other servers too. To be run to its end: a name that
    /// was taken is to be freed.
    ///
    /// # Errors
    /// As [`AtWork::claim`], and [`Error::NotRecorded`] when the database fails.
    pub(super) async fn share(
        mut self,
        store: Store,
        settler: Settler,
        request: NamedRequest,
    ) -> Result<Self, Error> {
        let first = settler.take_name(&request).await;
        if let Ok(Some(fingerprint)) = first {
            return Err(if fingerprint == request.fingerprint {
                Error::AtWork
            } else {
                Error::KeyReused
            });
        }
        self.shared = Some(Shared {
            store,
            request_id: request.request_id,
        });
        // it may be taken all the same: dropping this frees it
        first.map_err(|_| Error::NotRecorded)?;
        Ok(self)
    }

    /// Frees the name, at all servers before this returns if the database allows;
    /// an answer that is kept has freed it there already.
    pub(super) async fn end(mut self, is_kept: bool) {
        if let Some(Shared { store, request_id }) = &self.shared
            && (is_kept || store.free_name(request_id).await.is_ok())
        {
            self.shared = None;
        }
    }
}

impl Shared {
    async fn free(self) {
        while let Err(error) = self.store.free_name(&self.request_id).await {
            tracing::warn!(%error, "the name of a request is not free");
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            tokio::spawn(shared.free());
        }
        self.at_work.0.lock().remove(&self.name);
    }
}

/// An answer as it is kept.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Kept {
    text: String,
    reasoning: String,
    /// Id, name and arguments of each.
    tool_calls: Vec<(String, String, String)>,
    model_id: i64,
    model_name: String,
    finish_reason: Finish,
    prompt_tokens: u32,
    completion_tokens: u32,
    cached_prompt_tokens: u32,
    reasoning_tokens: u32,
    is_exact: bool,
    nano_dollars: i64,
    #[serde(default)]
    limited_by: Option<Cap>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Finish {
    Stop,
    Length,
    ToolCalls,
    ContentFilter,
    Other,
}

impl Kept {
    pub(super) fn new(content: Content, answer: &Answer) -> Self {
        let usage = answer.usage;
        let calls = content.tool_calls.into_iter();
        Self {
            text: content.text,
            reasoning: content.reasoning,
            tool_calls: calls
                .map(|call| (call.id, call.name, call.arguments))
                .collect(),
            model_id: answer.model_id,
            model_name: answer.model_name.clone(),
            finish_reason: match answer.finish_reason {
                FinishReason::Stop => Finish::Stop,
                FinishReason::Length => Finish::Length,
                FinishReason::ToolCalls => Finish::ToolCalls,
                FinishReason::ContentFilter => Finish::ContentFilter,
                FinishReason::Other => Finish::Other,
            },
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_prompt_tokens: usage.cached_prompt_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            is_exact: usage.source == CountSource::Exact,
            nano_dollars: answer.cost.0,
            limited_by: answer.limited_by,
        }
    }

    /// The pieces to send again, and how it ended.
    pub(super) fn replay(self) -> (Vec<Piece>, Answer) {
        let mut pieces = Vec::new();
        if !self.reasoning.is_empty() {
            pieces.push(Piece::Reasoning(self.reasoning));
        }
        if !self.text.is_empty() {
            pieces.push(Piece::Text(self.text));
        }
        let calls = self.tool_calls.into_iter();
        pieces.extend(calls.map(|(id, name, arguments)| {
            Piece::ToolCall(ToolCall {
                id,
                name,
                arguments,
            })
        }));
        let answer = Answer {
            model_id: self.model_id,
            model_name: self.model_name,
            finish_reason: match self.finish_reason {
                Finish::Stop => FinishReason::Stop,
                Finish::Length => FinishReason::Length,
                Finish::ToolCalls => FinishReason::ToolCalls,
                Finish::ContentFilter => FinishReason::ContentFilter,
                Finish::Other => FinishReason::Other,
            },
            usage: Usage {
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                cached_prompt_tokens: self.cached_prompt_tokens,
                reasoning_tokens: self.reasoning_tokens,
                source: if self.is_exact {
                    CountSource::Exact
                } else {
                    CountSource::Estimated
                },
            },
            cost: NanoDollars(self.nano_dollars),
            limited_by: self.limited_by,
        };
        (pieces, answer)
    }
}
