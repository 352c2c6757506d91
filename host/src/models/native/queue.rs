//! The bounded queue in front of a model's worker threads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The shortest and the longest time after which a refused request is asked to
/// try again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What can wait in a [`Queue`].
pub(super) trait Waiting {
    /// Whether nobody waits for this any more. It then takes up no place and
    /// is never started.
    fn is_abandoned(&self) -> bool;
}

/// Jobs in the order they came, for a fixed number of workers.
///
/// A job is let in when a worker is free for it or a place to wait is; so with
/// no places at all a job still runs on an idle worker.
pub(super) struct Queue<J> {
    workers: usize,
    places: usize,
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    waiting: VecDeque<J>,
    busy: usize,
    is_closed: bool,
    /// Moving average of how long a job keeps its worker.
    work: Duration,
}

impl<J: Waiting> Queue<J> {
    /// A queue for `workers` threads in which `places` jobs can wait beyond
    /// those that run.
    pub(super) fn new(workers: usize, places: usize) -> Self {
        Self {
            workers,
            places,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                busy: 0,
                is_closed: false,
                work: Duration::ZERO,
            }),
            changed: Condvar::new(),
        }
    }

    /// Lets a job in.
    ///
    /// # Errors
    /// When the queue is full: how long until a place is likely to be free.
    pub(super) fn put(&self, job: J) -> Result<(), Duration> {
        let mut state = self.lock();
        state.waiting.retain(|job| !job.is_abandoned());
        let free = self.workers - state.busy;
        if state.waiting.len() >= free + self.places {
            let workers = u32::try_from(self.workers).unwrap_or(u32::MAX);
            return Err((state.work / workers).clamp(RETRY.0, RETRY.1));
        }
        state.waiting.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job, waited for; `None` once the queue is closed and empty.
    /// [`Queue::done`] is to follow.
    pub(super) fn take(&self) -> Option<J> {
        let mut state = self.lock();
        loop {
            match state.waiting.pop_front() {
                Some(job) if job.is_abandoned() => {}
                Some(job) => {
                    state.busy += 1;
                    return Some(job);
                }
                None if state.is_closed => return None,
                None => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Says that a job taken is done, after `work`.
    pub(super) fn done(&self, work: Duration) {
        let mut state = self.lock();
        state.busy -= 1;
        state.work = (state.work * 7 + work) / 8;
    }

    /// Ends the workers once nothing waits.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // nothing panics while it holds the lock
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Waiting> fmt::Debug for Queue<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Queue")
            .field("workers", &self.workers)
            .field("busy", &state.busy)
            .field("places", &self.places)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}
