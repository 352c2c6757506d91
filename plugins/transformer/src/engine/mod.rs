//! One thread that takes all sequences through the model together.
//!
//! A sequence joins at the next step and leaves after the step of its last
//! token, or when nobody wants its tokens any more. Its tokens are those it
//! would have alone. It begins once there is room for its keys and values, in
//! the order of arrival.

mod inbox;
mod lookup;
mod meter;
mod pages;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use plugin_sdk::{Error, ErrorKind};
use tokio::sync::mpsc;

use crate::checkpoint::Loaded;
use crate::kernels::Team;
use crate::model::Workspace;
use crate::sampling::Sampler;
use inbox::Inbox;
use lookup::Lookup;
use meter::Meter;
use pages::Pages;
use sequence::Sequence;

/// Tokens that a sequence may be ahead of who reads them.
const AHEAD: usize = 32;
/// Tokens of prompts in a step in which somebody waits for their next token,
/// and in one in which nobody does.
const PROMPT_ROWS: (usize, usize) = (32, 256);
/// Tokens after which the next are predicted in a step, guessed ones included,
/// while guesses are made: up to here a row more costs little, since the time is
/// spent reading weights.
const GUESSING_ROWS: usize = 8;

/// How an engine works.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The model's name in metrics.
    pub(crate) name: String,
    /// Threads that work on a step.
    pub(crate) threads: NonZeroUsize,
    /// Pages of 16 positions, at least as many as one sequence can have.
    pub(crate) pages: usize,
    /// Whether prompts that begin alike share pages.
    pub(crate) is_sharing: bool,
    /// Whether tokens are guessed where an answer repeats what came before.
    pub(crate) is_guessing: bool,
}

/// The running engine. Dropping it lets the sequences under way end.
#[derive(Debug)]
pub(crate) struct Engine {
    inbox: Arc<Inbox>,
    is_guessing: bool,
}

/// The tokens of one sequence, as they come. Dropping it ends the sequence at
/// the next step.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokens: mpsc::Receiver<Result<u32, Error>>,
    cached: Arc<AtomicU32>,
    is_left: Arc<AtomicBool>,
    inbox: Arc<Inbox>,
}

impl Engine {
    /// Starts the engine of a model.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn start(loaded: Arc<Loaded>, options: &Options) -> std::io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let engine = Self {
            inbox: Arc::clone(&inbox),
            is_guessing: options.is_guessing,
        };
        let workspace = Workspace::new(Team::new(options.threads)?);
        let pages = Pages::new(options.pages, options.is_sharing);
        let meter = Meter::new(&options.name);
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                // whatever ends the thread, nobody is to wait for it
                let inbox = inbox::Closing(inbox);
                run(&loaded, workspace, &inbox.0, pages, &meter);
            })?;
        Ok(engine)
    }

    /// Adds a sequence that goes on after `prompt` for at most `max_tokens`, at
    /// least 1, and fits the context window with them.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the engine broke.
    pub(crate) fn begin(
        &self,
        loaded: &Loaded,
        prompt: Vec<u32>,
        max_tokens: u32,
        sampler: Sampler,
    ) -> Result<Tokens, Error> {
        let (sender, tokens) = mpsc::channel(AHEAD);
        let cache = loaded.model.cache();
        let lookup = self.is_guessing.then(Lookup::default);
        let sequence = Sequence::new(prompt, cache, max_tokens, sampler, lookup, sender);
        let (cached, is_left) = (sequence.cached(), sequence.is_left());
        self.inbox.put(sequence).map_err(|_| broken())?;
        Ok(Tokens {
            tokens,
            cached,
            is_left,
            inbox: Arc::clone(&self.inbox),
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl Tokens {
    /// Tokens of the prompt that were in shared pages; known with the first token.
    pub(crate) fn cached(&self) -> u32 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Ends the sequence as dropping it does, from another thread and while
    /// [`Self::next`] waits.
    pub(crate) fn canceller(&self) -> impl FnOnce() + Send + use<> {
        let (is_left, inbox) = (Arc::clone(&self.is_left), Arc::clone(&self.inbox));
        move || {
            is_left.store(true, Ordering::Relaxed);
            // the engine may be waiting for this very sequence
            inbox.wake();
        }
    }

    /// Waits for the next token. The sequence's own end is to be known from the
    /// tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the model or the engine broke, or the sequence
    /// was cancelled.
    pub(crate) fn next(&mut self) -> Result<u32, Error> {
        let token = self.tokens.blocking_recv().unwrap_or_else(|| Err(broken()));
        // it was full, and the engine may have waited for that to change
        if self.tokens.capacity() == 1 {
            self.inbox.wake();
        }
        token
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.canceller()();
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Internal, "the model failed").detail("its engine has ended")
}

/// The engine's thread.
fn run(loaded: &Loaded, mut workspace: Workspace, inbox: &Inbox, mut pages: Pages, meter: &Meter) {
    let (mut waiting, mut running) = (VecDeque::new(), Vec::new());
    while inbox.take(&mut waiting, &running) {
        waiting.retain(|sequence| !sequence.is_over());
        running.retain(|sequence| {
            let stays = !sequence.is_over();
            if !stays {
                sequence.release(&mut pages);
            }
            stays
        });
        while let Some(mut sequence) = waiting.pop_front() {
            if !sequence.lease(&mut pages) {
                waiting.push_front(sequence);
                break;
            }
            meter.began(sequence.seen(), sequence.unseen());
            running.push(sequence);
        }
        meter.tell(running.len(), waiting.len(), &pages);
        step(loaded, &mut workspace, &mut running);
        for sequence in &mut running {
            sequence.share(&mut pages);
            meter.guessed(sequence.take_guesses());
        }
    }
}

/// Takes every sequence that can go on a token further, and prompts by a piece.
/// A panic fails the sequence it came from and no other.
fn step(loaded: &Loaded, workspace: &mut Workspace, sequences: &mut [Sequence]) {
    let mut batch = plan(sequences);
    guess(&mut batch);
    let seen: Vec<_> = batch.iter().map(|(sequence, _)| sequence.seen()).collect();
    let whole = catch_unwind(AssertUnwindSafe(|| advance(loaded, workspace, &mut batch)));
    if whole.is_ok() {
        return;
    }
    // whose fault it was shows when each goes alone
    for (entry, seen) in batch.iter_mut().zip(seen) {
        entry.0.rewind(seen);
        let alone = catch_unwind(AssertUnwindSafe(|| {
            advance(loaded, workspace, std::slice::from_mut(entry));
        }));
        if alone.is_err() {
            tracing::error!("a sequence made the model panic");
            // what was not computed is not to be shared
            entry.0.rewind(seen);
            entry.0.fail("it panicked");
        }
    }
}

/// Who takes part in the next step, and with how many tokens. A prompt takes at
/// most half of the rows that those before it left, so that a short one soon
/// follows a long one, and the first takes what is left in the end.
fn plan(sequences: &mut [Sequence]) -> Vec<(&mut Sequence, usize)> {
    let ready = || sequences.iter().filter(|sequence| sequence.is_ready());
    let is_awaited = ready().any(|sequence| sequence.unseen() == 1);
    let mut left = if is_awaited {
        PROMPT_ROWS.0
    } else {
        PROMPT_ROWS.1
    };
    let ready = sequences.iter_mut().filter(|sequence| sequence.is_ready());
    let mut batch: Vec<_> = ready.map(|sequence| (sequence, 0)).collect();
    for (sequence, tokens) in &mut batch {
        *tokens = match sequence.unseen() {
            1 => 1,
            prompt => {
                let rows = prompt.min(left.div_ceil(2));
                left -= rows;
                rows
            }
        };
    }
    for (sequence, tokens) in &mut batch {
        let more = left.min(sequence.unseen() - *tokens);
        (*tokens, left) = (*tokens + more, left - more);
    }
    batch.retain(|(_, tokens)| *tokens > 0);
    batch
}

/// Has those that wait for their next token guess what follows it, as far as
/// there are few of them.
fn guess(batch: &mut [(&mut Sequence, usize)]) {
    let awaited = batch.iter_mut().map(|(sequence, _)| sequence);
    let awaited: Vec<_> = awaited.filter(|sequence| sequence.unseen() == 1).collect();
    let spare = GUESSING_ROWS.saturating_sub(awaited.len());
    let each = spare.checked_div(awaited.len()).unwrap_or(0);
    for sequence in awaited {
        sequence.guess(each);
    }
}

/// Takes sequences further by so many tokens.
fn advance(loaded: &Loaded, workspace: &mut Workspace, batch: &mut [(&mut Sequence, usize)]) {
    if batch.is_empty() {
        return;
    }
    let mut runs: Vec<_> = batch
        .iter_mut()
        .map(|(sequence, tokens)| sequence.next_run(*tokens))
        .collect();
    loaded.model.step(workspace, &mut runs);
    let batch = batch.iter_mut().map(|(sequence, _)| &mut **sequence);
    let mut predicted: Vec<_> = batch
        .filter_map(|sequence| {
            let count = sequence.predictions()?;
            Some((sequence, count))
        })
        .collect();
    // rows that pad the embedding stand for no token
    workspace.for_runs(
        &mut predicted,
        loaded.tokenizer.size(),
        |sequence, logits| {
            // caught here: the others have chosen, and are not to choose twice
            let chosen = catch_unwind(AssertUnwindSafe(|| {
                sequence.choose(logits, &loaded.end_tokens)
            }));
            chosen.unwrap_or_else(|_| {
                sequence.fail("choosing a token panicked");
                false
            })
        },
    );
}
