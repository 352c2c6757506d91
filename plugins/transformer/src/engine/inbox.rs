//! How sequences come to the engine's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::sequence::Sequence;

/// Sequences that wait for the next step.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    arrived: Vec<Sequence>,
    is_closed: bool,
}

/// Closes the inbox at its end, and turns away what is in it.
pub(super) struct Closing(pub(super) Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
        self.0.lock().arrived.clear();
    }
}

impl Inbox {
    /// Lets a sequence in, unless the inbox is closed: then it is given back.
    pub(super) fn put(&self, sequence: Sequence) -> Result<(), Box<Sequence>> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Box::new(sequence));
        }
        state.arrived.push(sequence);
        self.changed.notify_one();
        Ok(())
    }

    /// Moves what has arrived to `waiting`. Unless something has, it then waits
    /// until one of `running` can go on or leaves, or one that waits leaves.
    /// False when there are none and none will come.
    pub(super) fn take(&self, waiting: &mut VecDeque<Sequence>, running: &[Sequence]) -> bool {
        let mut state = self.lock();
        loop {
            let has_arrived = !state.arrived.is_empty();
            waiting.extend(state.arrived.drain(..));
            if has_arrived
                || running
                    .iter()
                    .any(|sequence| sequence.is_ready() || sequence.is_over())
                || waiting.iter().any(Sequence::is_over)
            {
                return true;
            }
            if state.is_closed && running.is_empty() && waiting.is_empty() {
                return false;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has the engine look again at what its sequences can do.
    pub(super) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_one();
    }

    /// Lets no more in.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // nothing panics while it holds the lock
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
