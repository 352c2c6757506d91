//! Limits on time: how long a guest computes, and how long a call takes.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plugin_sdk::{Error, ErrorKind};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::{Store, UpdateDeadline};

use super::epoch::{EpochClock, TICK};
use super::{failure, runtime};

/// A guest computed for longer than it may.
#[derive(Debug, thiserror::Error)]
#[error("the plugin computed for longer than it may")]
struct Overrun;

/// The time of one request. A call into the guest is only polled while the guest
/// computes, so what its polls take of their thread's CPU time is the guest's.
///
/// To ask for that is a call of the system, so it begins once a request has computed for
/// a tick. Until then time counts as it passes, which is more if the thread has to wait
/// meanwhile, and no more than a tick for a poll: at the next one it would be asked again.
#[derive(Clone)]
pub(super) struct Meter {
    clock: Arc<Mutex<Clock>>,
    epochs: Arc<EpochClock>,
    deadline: Instant,
    /// Guests that compute for long take turns at these, so that they never have
    /// all threads: what others need is short.
    turns: Arc<Semaphore>,
}

#[derive(Default)]
struct Clock {
    spent: Duration,
    /// What was spent when it last had to wait for its turn.
    at_turn: Duration,
    /// When the poll began that is under way.
    since: Option<Since>,
    /// Held while the guest computes on, never while it waits.
    turn: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy)]
enum Since {
    Time(Instant),
    /// In CPU time of the thread.
    Cpu(Duration),
}

impl Meter {
    pub(super) fn new(deadline: Instant, epochs: Arc<EpochClock>, turns: Arc<Semaphore>) -> Self {
        Self {
            clock: Arc::default(),
            epochs,
            deadline,
            turns,
        }
    }

    /// Makes the guest wait for its turn at the ticks of the engine's clock, unless it has
    /// computed for less than an eighth of one since it last did, and stop once it has computed
    /// for `budget`.
    pub(super) fn limit<T>(&self, store: &mut Store<T>, budget: Duration) {
        let meter = self.clone();
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            let (computed, since_turn) = meter.with(|clock| clock.computed());
            if computed > budget {
                return Err(Overrun.into());
            }
            // it has mostly waited for something else while the clock ticked
            if since_turn < TICK / 8 {
                return Ok(UpdateDeadline::Continue(1));
            }
            meter.with(|clock| clock.at_turn = computed);
            let turn = meter.clone().take_turn();
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(turn)))
        });
    }

    /// Begins the time of a request whose instance was made before.
    pub(super) fn begin<T>(&mut self, store: &mut Store<T>, deadline: Instant) {
        self.deadline = deadline;
        store.set_epoch_deadline(1);
    }

    /// Forgets what the request before has computed.
    pub(super) fn renew(&self) {
        self.with(|clock| (clock.spent, clock.at_turn) = Default::default());
    }

    async fn take_turn(self) {
        self.with(|clock| clock.turn = None);
        // a turn that is free at once would not let anybody else on this thread
        tokio::task::yield_now().await;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        self.with(|clock| clock.turn = turn.ok());
    }

    /// Runs a call into the guest.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] at the deadline; otherwise the plugin has failed.
    /// After any error the store is finished.
    pub(super) async fn run<T>(
        &self,
        call: impl Future<Output = wasmtime::Result<T>>,
    ) -> Result<T, Error> {
        self.run_until(self.deadline, call).await
    }

    /// The same for a call that may not take longer than this, whatever time is left.
    pub(super) async fn run_within<T>(
        &self,
        timeout: Duration,
        call: impl Future<Output = wasmtime::Result<T>>,
    ) -> Result<T, Error> {
        self.run_until(self.deadline.min(Instant::now() + timeout), call)
            .await
    }

    async fn run_until<T>(
        &self,
        deadline: Instant,
        call: impl Future<Output = wasmtime::Result<T>>,
    ) -> Result<T, Error> {
        let mut call = pin!(call);
        let metered = poll_fn(|context| {
            // what the guest waits for ends at the deadline too, and it would say that this failed
            if Instant::now() >= deadline {
                return Poll::Ready(None);
            }
            self.with(|clock| clock.since = Some(Since::now(clock.spent)));
            let computing = self.epochs.computing();
            let poll = call.as_mut().poll(context);
            drop(computing);
            self.with(|clock| {
                clock.spent += clock.running();
                clock.since = None;
                clock.turn = None;
            });
            poll.map(Some)
        });
        match tokio::time::timeout_at(deadline.into(), metered).await {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(error))) if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
                Err(runtime::overloaded().detail(error))
            }
            Ok(Some(Err(error))) => Err(failure::trapped(&error)),
            Ok(None) | Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the model did not answer in time",
            )),
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Clock) -> R) -> R {
        act(&mut self.clock.lock())
    }
}

impl Clock {
    /// How long the guest has computed, and how long since it last waited for its turn.
    fn computed(&self) -> (Duration, Duration) {
        let computed = self.spent + self.running();
        (computed, computed.saturating_sub(self.at_turn))
    }

    fn running(&self) -> Duration {
        match self.since {
            None => Duration::ZERO,
            Some(Since::Time(since)) => since.elapsed().min(TICK),
            Some(Since::Cpu(since)) => thread_cpu_time().saturating_sub(since),
        }
    }
}

impl Since {
    /// For a request that has computed for so long.
    fn now(spent: Duration) -> Self {
        if spent < TICK {
            Self::Time(Instant::now())
        } else {
            Self::Cpu(thread_cpu_time())
        }
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use wasmtime::Engine;

    use super::*;

    #[tokio::test]
    async fn what_fails_since_its_time_is_over_is_a_timeout() {
        let deadline = Instant::now() + Duration::from_millis(20);
        let epochs = EpochClock::start(&Engine::default()).unwrap();
        let meter = Meter::new(deadline, Arc::new(epochs), Arc::new(Semaphore::new(1)));
        // as an upstream's body does
        let waiting = tokio::time::timeout_at(deadline.into(), std::future::pending::<()>());
        let called = meter.run(async { Ok(waiting.await) }).await;
        let error = called.expect_err("time is over");
        assert_eq!(error.kind, ErrorKind::Timeout);
    }
}
