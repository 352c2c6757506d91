//! One answer in the making: a token a step.

use std::sync::Arc;

use plugin_sdk::{Completion, CountSource, Error, Event, Finish, FinishReason, Params, Usage};

use crate::checkpoint::Loaded;
use crate::detokenize::Detokenizer;
use crate::engine::{Engine, Tokens};
use crate::sampling;
use crate::stop::{Passed, StopFinder};

/// New tokens where the request does not say.
const DEFAULT_MAX_TOKENS: u32 = 100;

/// One answer: the engine's tokens made into text.
pub struct Generation {
    loaded: Arc<Loaded>,
    tokens: Tokens,
    characters: Detokenizer,
    stops: StopFinder,
    prompt_tokens: u32,
    completion_tokens: u32,
    max_tokens: u32,
}

impl Generation {
    /// An answer to a prompt that is not empty and fits the context window.
    pub(crate) fn new(
        loaded: Arc<Loaded>,
        engine: &Engine,
        prompt: Vec<u32>,
        params: Params,
    ) -> Result<Self, Error> {
        let sampler = sampling::sampler(&params, loaded.tokenizer.size())?;
        let config = loaded.model.config();
        let left = u32::try_from(config.context - prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = params.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).min(left);
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        Ok(Self {
            tokens: engine.begin(&loaded, prompt, max_tokens.max(1), sampler)?,
            characters: Detokenizer::default(),
            stops: StopFinder::new(params.stop),
            prompt_tokens,
            completion_tokens: 0,
            max_tokens,
            loaded,
        })
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            cached_prompt_tokens: self.tokens.cached(),
            source: CountSource::Exact,
            ..Usage::default()
        }
    }

    /// The last events: what was held back, unless a stop string came.
    fn finish(&mut self, mut text: String, reason: FinishReason, is_stopped: bool) -> Vec<Event> {
        let mut reason = reason;
        if !is_stopped {
            match self.stops.push(self.characters.finish()) {
                Passed::On(rest) => text = text + &rest + &self.stops.finish(),
                Passed::Stopped(rest) => {
                    text += &rest;
                    reason = FinishReason::Stop;
                }
            }
        }
        let finish = Event::Finish(Finish {
            reason,
            usage: self.usage(),
            ext: Vec::new(),
        });
        let text = (!text.is_empty()).then_some(Event::Text(text));
        text.into_iter().chain([finish]).collect()
    }
}

impl Completion for Generation {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        let token = self.tokens.next()?;
        self.completion_tokens += 1;
        if self.loaded.end_tokens.contains(&token) {
            return Ok(self.finish(String::new(), FinishReason::Stop, false));
        }
        let piece = self.characters.push(self.loaded.tokenizer.bytes(token));
        let text = match self.stops.push(&piece) {
            Passed::On(text) => text,
            Passed::Stopped(text) => return Ok(self.finish(text, FinishReason::Stop, true)),
        };
        if self.completion_tokens >= self.max_tokens {
            return Ok(self.finish(text, FinishReason::Length, false));
        }
        let text = (!text.is_empty()).then_some(Event::Text(text));
        Ok(text
            .into_iter()
            .chain([Event::Usage(self.usage())])
            .collect())
    }

    /// The engine may first be busy with others for long.
    fn canceller(&self) -> Option<Box<dyn FnOnce() + Send>> {
        Some(Box::new(self.tokens.canceller()))
    }
}
