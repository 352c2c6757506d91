//! How instances are made, and one kept in advance: so a request need not wait for
//! that, which takes longer than all that the host does for the calls.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use plugin_sdk::{Error, Settings};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;

use super::journal::Journal;
use super::meter::Meter;
use super::network::{Network, Upstream};
use super::runtime::Runtime;
use super::state::State;
use super::v0_1::{Instance, Plugin};
use super::{Limits, PROOF_TIMEOUT};

/// What makes the instances of a component.
pub(super) struct Mould {
    pub(super) runtime: Arc<Runtime>,
    pub(super) plugin: Plugin,
    pub(super) model: Arc<str>,
    pub(super) settings: Arc<Settings>,
    pub(super) upstream: Option<Arc<Upstream>>,
    pub(super) limits: Arc<Limits>,
}

/// A live instance with all that is its request's. Dropping it stops whatever it does.
pub(super) struct Running {
    pub(super) store: Store<State>,
    pub(super) meter: Meter,
    pub(super) instance: Instance,
}

/// A component's next instance.
#[derive(Default)]
pub(super) struct Spare(Mutex<Next>);

#[derive(Default)]
enum Next {
    #[default]
    None,
    Making,
    Ready {
        running: Box<Running>,
        /// Among all spare ones.
        _place: OwnedSemaphorePermit,
    },
}

impl Mould {
    /// An instance that reaches nothing, for a request that ends at `deadline`.
    ///
    /// # Errors
    /// That the plugin failed, or took until then.
    pub(super) async fn instance(&self, deadline: Instant) -> Result<Running, Error> {
        let network = Network {
            gate: None,
            requests_left: self.limits.upstream_requests,
            deadline,
        };
        let lines = self.limits.log_lines;
        let journal = Journal::new(Arc::clone(&self.model), self.upstream.clone(), lines);
        let state = State::new(Arc::clone(&self.settings), journal, network, &self.limits);
        let mut store = Store::new(&self.runtime.engine, state);
        store.limiter(|state| &mut state.memory);
        let meter = Meter::new(deadline, Arc::clone(&self.runtime.turns));
        let budget = Duration::from_millis(self.limits.cpu_ms.into());
        meter.limit(&mut store, budget);
        let instance = meter.run(self.plugin.instantiate(&mut store)).await?;
        Ok(Running {
            store,
            meter,
            instance,
        })
    }
}

impl Running {
    /// Gives the instance to a request that ends at `deadline`.
    fn begin(&mut self, deadline: Instant) {
        self.meter.begin(&mut self.store, deadline);
        self.store.data_mut().network.deadline = deadline;
    }
}

impl Spare {
    /// The instance that is ready, for a request that ends at `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Option<Running> {
        let mut next = self.next();
        match std::mem::take(&mut *next) {
            Next::Ready { mut running, .. } => {
                running.begin(deadline);
                Some(*running)
            }
            other => {
                *next = other;
                None
            }
        }
    }

    /// Has the next instance made, unless it is, or there are spare ones enough.
    pub(super) fn refill(self: &Arc<Self>, mould: &Arc<Mould>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut next = self.next();
        if !matches!(*next, Next::None) {
            return;
        }
        let Some(place) = mould.runtime.spare_place() else {
            return;
        };
        *next = Next::Making;
        drop(next);
        let (spare, mould) = (Arc::clone(self), Arc::clone(mould));
        runtime.spawn(async move {
            // should it panic, the component goes on without spares
            let made = mould.instance(Instant::now() + PROOF_TIMEOUT).await;
            // the request that makes its own tells why it cannot be
            *spare.next() = match made {
                Ok(running) => Next::Ready {
                    running: Box::new(running),
                    _place: place,
                },
                Err(_) => Next::None,
            };
        });
    }

    fn next(&self) -> std::sync::MutexGuard<'_, Next> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_ready = matches!(*self.next(), Next::Ready { .. });
        f.debug_tuple("Spare").field(&is_ready).finish()
    }
}
