//! Threads that work on the parts of a job together.
//!
//! A step of the model is some hundred short jobs in a row. Between two of them
//! a thread waits by spinning, and only after a while by sleeping. Parts are
//! taken one at a time by whoever is free: a thread that the system took the
//! processor from holds up nothing but the part it is at.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Turns of waiting before a thread of the team sleeps: about 50 µs.
const SPINS: u32 = 2_000;
/// Parts of a job for each thread, so that one that is late is helped out. Not more: at
/// its beginning a part waits for memory.
const PARTS: usize = 2;

/// Does part `n` of a job.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The calling thread and its helpers, which end when this is dropped.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The job under way: its number (32 bits), how many parts it has (16) and
    /// how many of them are taken (16).
    state: AtomicU64,
    /// Parts that are done.
    done: AtomicU32,
    /// Written when no part is under way; read only by who has taken a part.
    job: UnsafeCell<Option<*const Job<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: Mutex<usize>,
    wake: Condvar,
    is_over: AtomicBool,
}

// SAFETY: `job` is written by the one thread that owns the team, while no part
// is taken and not done, and read between taking a part and being done with
// it; `state` and `done` order the two. What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is of no use to another thread without a part.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Team {
    /// A team of `threads`, the one that calls included.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn new(threads: NonZeroUsize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            done: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::default(),
            sleeping: Mutex::new(0),
            wake: Condvar::new(),
            is_over: AtomicBool::new(false),
        });
        let mut team = Self {
            shared,
            helpers: Vec::new(),
        };
        for number in 1..threads.get() {
            let shared = Arc::clone(&team.shared);
            // on failure the drop of `team` ends those that run
            let helper = thread::Builder::new()
                .name(format!("engine helper {number}"))
                .spawn(move || shared.help())?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// How many threads there are.
    fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Cuts `items` into runs of whole `unit`s and has each done by one thread;
    /// `work` gets a run and the number of its first unit. Returns when all are
    /// done.
    ///
    /// # Panics
    /// When `work` does.
    pub(crate) fn each<T: Send>(
        &mut self,
        items: &mut [T],
        unit: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        self.each_pair((items, unit), (&mut [(); 0], 0), |first, run, _| {
            work(first, run);
        });
    }

    /// As [`Team::each`], of two slices with units of their own size, as many in
    /// each.
    ///
    /// # Panics
    /// When `work` does.
    pub(crate) fn each_pair<T: Send, U: Send>(
        &mut self,
        (items, unit): (&mut [T], usize),
        (others, other_unit): (&mut [U], usize),
        work: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        let units = items.len() / unit;
        let in_part = units.div_ceil(self.threads() * PARTS).max(1);
        let parts = units.div_ceil(in_part);
        if parts < 2 || self.helpers.is_empty() {
            work(0, items, others);
            return;
        }
        let items = Slices(items.as_mut_ptr(), units * unit);
        let others = Slices(others.as_mut_ptr(), others.len());
        self.run(parts, &|part| {
            let first = part * in_part;
            // SAFETY: parts do not overlap, each is taken once, and the slice is
            // borrowed until all are done
            let (run, other) = unsafe {
                (
                    items.get(first * unit, in_part * unit),
                    others.get(first * other_unit, in_part * other_unit),
                )
            };
            work(first, run, other);
        });
    }

    /// Does all parts of a job, with the helpers.
    fn run(&mut self, parts: usize, job: &Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: the lifetime is forgotten; this function ends only when no
        // part is under way, and nobody reads the pointer without a part
        let job = unsafe { std::mem::transmute::<&Job<'_>, &'static Job<'static>>(job) };
        // SAFETY: the last job is done, so nobody reads it
        unsafe { *shared.job.get() = Some(job) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        let state = number << 32 | (parts as u64 & 0xFFFF) << 16;
        shared.state.store(state, Ordering::SeqCst);
        if *shared.sleeping() > 0 {
            shared.wake.notify_all();
        }
        while shared.take_part() {}
        let mut turns = 0;
        while shared.done.load(Ordering::Acquire) as usize != parts {
            turns += 1;
            if turns < SPINS {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        let panic = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        drop(self.shared.sleeping());
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // it catches the panics of jobs
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// Takes the next part and does it; false when none is left.
    fn take_part(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        let part = loop {
            let (parts, taken) = (state >> 16 & 0xFFFF, state & 0xFFFF);
            if taken >= parts {
                return false;
            }
            // the number of the job in the upper bits makes this fail for a job that is over
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break taken as usize,
                Err(now) => state = now,
            }
        };
        // SAFETY: until `done` counts this part nobody writes the job, and what
        // it points to is borrowed
        let job = unsafe { (*self.job.get()).map(|job| &*job) };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(job) = job {
                job(part);
            }
        }));
        if let Err(panic) = outcome {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// What a helper does all its life.
    fn help(&self) {
        let mut turns = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            if self.take_part() {
                turns = 0;
            } else if turns < SPINS {
                turns += 1;
                hint::spin_loop();
            } else {
                self.sleep();
                turns = 0;
            }
        }
    }

    /// Sleeps until there is a part to take.
    fn sleep(&self) {
        let mut sleeping = self.sleeping();
        *sleeping += 1;
        while !self.is_over.load(Ordering::SeqCst) && !self.has_part() {
            sleeping = self
                .wake
                .wait(sleeping)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *sleeping -= 1;
    }

    fn has_part(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & 0xFFFF < state >> 16 & 0xFFFF
    }

    fn sleeping(&self) -> std::sync::MutexGuard<'_, usize> {
        // nothing panics while it holds the lock
        self.sleeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slice that is handed out in pieces.
struct Slices<T>(*mut T, usize);

// SAFETY: pieces go to one thread each, as `Team::each` promises
unsafe impl<T: Send> Sync for Slices<T> {}

impl<T> Slices<T> {
    /// Items from `start` on, at most `len` of them.
    ///
    /// # Safety
    /// No two pieces that are in use overlap, and the slice is still borrowed.
    #[expect(clippy::mut_from_ref, reason = "pieces do not overlap")]
    unsafe fn get(&self, start: usize, len: usize) -> &mut [T] {
        let start = start.min(self.1);
        let len = len.min(self.1 - start);
        // SAFETY: inside of the slice; the rest is the caller's promise
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(threads: usize) -> Team {
        Team::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_unit_is_worked_on_once() {
        for threads in [1, 2, 5] {
            let mut team = team(threads);
            for units in [0, 1, 2, 7, 100] {
                let mut items = vec![0; units * 3];
                for _ in 0..50 {
                    team.each(&mut items, 3, |first, run| {
                        for (index, unit) in run.chunks_mut(3).enumerate() {
                            unit.iter_mut().for_each(|item| *item += first + index + 1);
                        }
                    });
                }
                let expected: Vec<_> = (0..units * 3).map(|item| 50 * (item / 3 + 1)).collect();
                assert_eq!(items, expected, "{threads} {units}");
            }
        }
    }

    #[test]
    fn two_slices_are_cut_at_the_same_units() {
        let mut team = team(2);
        let (mut items, mut others) = (vec![0; 7 * 3], vec![0; 7 * 2]);
        team.each_pair((&mut items, 3), (&mut others, 2), |first, items, others| {
            let units = items.chunks_mut(3).zip(others.chunks_mut(2));
            for (unit, (items, others)) in (first..).zip(units) {
                items.fill(unit);
                others.fill(unit);
            }
        });
        assert_eq!(items, (0..7 * 3).map(|item| item / 3).collect::<Vec<_>>());
        assert_eq!(others, (0..7 * 2).map(|item| item / 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_comes_back_and_the_team_goes_on() {
        let mut team = team(3);
        let mut items = vec![0; 60];
        let caught = catch_unwind(AssertUnwindSafe(|| {
            team.each(&mut items, 1, |first, _| {
                assert_ne!(first, 0, "the first one");
            });
        }));
        assert!(caught.is_err());
        team.each(&mut items, 1, |_, run| run.fill(1));
        assert!(items.iter().all(|&item| item == 1));
    }
}
