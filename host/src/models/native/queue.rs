//! The bounded queue in front of a model's worker threads, fair between those whose
//! jobs wait in it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The shortest and the longest time after which a refused request is asked to
/// try again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What can wait in a [`Queue`].
pub(super) trait Waiting {
    /// Whether nobody waits for this any more. It then takes up no place and
    /// is never started.
    fn is_abandoned(&self) -> bool;
    /// Whose it is.
    fn owner(&self) -> i64;
}

/// Jobs for a fixed number of workers. Next is a job of the owner with the fewest
/// at work, of those the one whose last turn is longest ago; jobs of one owner go in
/// the order they came.
///
/// A job is let in when a worker is free for it or a place to wait is; so with
/// no places at all a job still runs on an idle worker. One that finds the queue full
/// takes the place of the last one of whoever has most waiting there.
pub(super) struct Queue<J> {
    workers: usize,
    places: usize,
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    waiting: VecDeque<J>,
    /// Of owners with jobs here.
    turns: HashMap<i64, Turns>,
    /// Turns there were.
    taken: u64,
    busy: usize,
    is_closed: bool,
    /// Moving average of how long a job keeps its worker.
    work: Duration,
}

/// What an owner had of the workers.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Turns {
    /// Its jobs at work.
    running: usize,
    /// The number of its last turn.
    last: u64,
}

impl<J: Waiting> State<J> {
    /// Takes the next job out.
    fn next(&mut self) -> Option<J> {
        self.waiting.retain(|job| !job.is_abandoned());
        let turns = |job: &J| self.turns.get(&job.owner()).copied().unwrap_or_default();
        let waiting = self.waiting.iter().enumerate();
        // of equals the first
        let (index, _) = waiting.min_by_key(|(_, job)| turns(job))?;
        let job = self.waiting.remove(index)?;
        self.taken += 1;
        let owners = self.turns.entry(job.owner()).or_default();
        *owners = Turns {
            running: owners.running + 1,
            last: self.taken,
        };
        self.busy += 1;
        Some(job)
    }

    /// Takes out the last job of the owner who has most waiting, if that is more than
    /// `owner` would have with one more.
    fn take_back(&mut self, owner: i64) -> Option<J> {
        let mut waiting = HashMap::new();
        for job in &self.waiting {
            *waiting.entry(job.owner()).or_insert(0) += 1;
        }
        let own = waiting.get(&owner).copied().unwrap_or(0);
        let (&most, &count) = waiting.iter().max_by_key(|(_, count)| **count)?;
        if count <= own + 1 {
            return None;
        }
        let last = self.waiting.iter().rposition(|job| job.owner() == most)?;
        self.waiting.remove(last)
    }
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
                turns: HashMap::new(),
                taken: 0,
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
    /// When the queue is full: the job that has no place, this one or another, and how
    /// long until one is likely to be free.
    pub(super) fn put(&self, job: J) -> Result<(), (J, Duration)> {
        let mut state = self.state.lock();
        state.waiting.retain(|job| !job.is_abandoned());
        let free = self.workers - state.busy;
        if state.waiting.len() < free + self.places {
            state.waiting.push_back(job);
            self.changed.notify_one();
            return Ok(());
        }
        let workers = u32::try_from(self.workers).unwrap_or(u32::MAX);
        let wait = (state.work / workers).clamp(RETRY.0, RETRY.1);
        let Some(last) = state.take_back(job.owner()) else {
            return Err((job, wait));
        };
        state.waiting.push_back(job);
        Err((last, wait))
    }

    /// The next job, waited for; `None` once the queue is closed and empty.
    /// [`Queue::done`] is to follow.
    pub(super) fn take(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            match state.next() {
                Some(job) => return Some(job),
                None if state.is_closed => return None,
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Says that a job taken is done, after `work`.
    pub(super) fn done(&self, owner: i64, work: Duration) {
        let mut state = self.state.lock();
        state.busy -= 1;
        if let Some(turns) = state.turns.get_mut(&owner) {
            turns.running = turns.running.saturating_sub(1);
            let is_idle = turns.running == 0;
            if is_idle && state.waiting.iter().all(|job| job.owner() != owner) {
                state.turns.remove(&owner);
            }
        }
        state.work = (state.work * 7 + work) / 8;
    }

    /// Ends the workers once nothing waits.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }
}

impl<J: Waiting> fmt::Debug for Queue<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Queue")
            .field("workers", &self.workers)
            .field("busy", &state.busy)
            .field("places", &self.places)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}
