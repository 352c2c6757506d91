//! The engine's clock: it ticks while guests compute, and stands still once none has for a
//! while, so that an idle server wakes no processor.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// How often a computing guest gives way to other tasks, and its CPU time is
/// looked at.
pub(super) const TICK: Duration = Duration::from_millis(2);

/// Ticks without a guest until it stands: to set it going again is a call of the system, of
/// which a request in such a time is worth one.
const TICKS_AT_REST: u32 = 50;

/// The clock of an engine; it ends with this.
pub(super) struct EpochClock {
    shared: Arc<Shared>,
    thread: Thread,
}

/// A guest computes for as long as this is there.
pub(super) struct Computing<'a>(&'a Shared);

#[derive(Default)]
struct Shared {
    /// Guests that do.
    computing: AtomicUsize,
    /// It has found none, and sleeps until it is told of one.
    stands: AtomicBool,
    is_over: AtomicBool,
}

impl EpochClock {
    /// Starts it on a thread, not in a task: a guest that keeps all workers busy must not
    /// stop it.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(super) fn start(engine: &Engine) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (engine, seen) = (engine.clone(), Arc::clone(&shared));
        let tick = move || {
            let mut at_rest = 0;
            while !seen.is_over.load(SeqCst) {
                engine.increment_epoch();
                at_rest = match seen.computing.load(SeqCst) {
                    0 => at_rest + 1,
                    _ => 0,
                };
                if at_rest < TICKS_AT_REST {
                    thread::sleep(TICK);
                } else {
                    seen.stand();
                    at_rest = 0;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("wasm-clock".to_owned())
            .spawn(tick)?;
        Ok(Self {
            shared,
            thread: thread.thread().clone(),
        })
    }

    /// Ticks until what this returns is dropped, and for a while after.
    pub(super) fn computing(&self) -> Computing<'_> {
        self.shared.computing.fetch_add(1, SeqCst);
        // either this sees that it stands, or it sees this; once it goes, it goes for a while
        if self.shared.stands.load(SeqCst) && self.shared.stands.swap(false, SeqCst) {
            self.thread.unpark();
        }
        Computing(&self.shared)
    }
}

impl Shared {
    /// Sleeps until a guest computes, or the clock is over.
    fn stand(&self) {
        self.stands.store(true, SeqCst);
        // a thread may be woken for nothing
        while self.stands.load(SeqCst)
            && self.computing.load(SeqCst) == 0
            && !self.is_over.load(SeqCst)
        {
            thread::park();
        }
        self.stands.store(false, SeqCst);
    }
}

impl Drop for Computing<'_> {
    fn drop(&mut self) {
        self.0.computing.fetch_sub(1, SeqCst);
    }
}

impl Drop for EpochClock {
    fn drop(&mut self) {
        self.shared.is_over.store(true, SeqCst);
        self.thread.unpark();
    }
}
