//! How instances are made, and kept for their next request: so none need wait for
//! that, which takes longer than all that the host does for the calls.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plugin_sdk::{Error, Settings};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;
use wasmtime::component::ResourceAny;

use super::PROOF_TIMEOUT;
use super::guest_log::GuestLog;
use super::meter::Meter;
use super::network::{Network, Upstream};
use super::runtime::Runtime;
use super::state::State;
use super::v0_1::{Instance, Plugin};
use crate::config::ModelLimits;

/// Bytes that a guest may hand over in one call, beyond the longest body or answer.
const CALL_OVERHEAD: usize = 4 << 20;

/// What makes the instances of a component.
pub(super) struct Template {
    pub(super) runtime: Arc<Runtime>,
    pub(super) plugin: Plugin,
    pub(super) model: Arc<str>,
    pub(super) settings: Arc<Settings>,
    pub(super) upstream: Option<Arc<Upstream>>,
    pub(super) limits: Arc<ModelLimits>,
}

/// A live instance with all that is its request's. Dropping it stops whatever it does.
pub(super) struct Running {
    pub(super) store: Store<State>,
    pub(super) meter: Meter,
    pub(super) instance: Instance,
    /// Requests that it may take, the present one among them.
    requests_left: u32,
}

/// A component's next instances.
#[derive(Default)]
pub(super) struct Spare(Mutex<Next>);

#[derive(Default)]
struct Next {
    /// The last one is the next.
    ready: Vec<Ready>,
    is_making: bool,
}

struct Ready {
    running: Box<Running>,
    /// Among all spare ones.
    _place: OwnedSemaphorePermit,
}

impl Template {
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
        let log = GuestLog::new(Arc::clone(&self.model), self.upstream.clone(), lines);
        let state = State::new(Arc::clone(&self.settings), log, network, &self.limits);
        let mut store = Store::new(&self.runtime.engine, state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(self.call_bytes());
        let Runtime { clock, turns, .. } = &*self.runtime;
        let meter = Meter::new(deadline, Arc::clone(clock), Arc::clone(turns));
        let budget = Duration::from_millis(self.limits.cpu_ms.into());
        meter.limit(&mut store, budget);
        let instance = meter.run(self.plugin.instantiate(&mut store)).await?;
        Ok(Running {
            store,
            meter,
            instance,
            requests_left: self.limits.requests_per_instance,
        })
    }

    /// Bytes that a guest may hand over in one call, as they lie in the host: a list of
    /// events or headers takes more of it than their texts.
    fn call_bytes(&self) -> usize {
        let longest = self.limits.request_bytes.max(self.limits.response_bytes);
        longest.saturating_mul(2).saturating_add(CALL_OVERHEAD)
    }
}

impl Running {
    /// Gives the instance to a request that ends at `deadline`.
    fn begin(&mut self, deadline: Instant) {
        self.meter.begin(&mut self.store, deadline);
        self.store.data_mut().network.deadline = deadline;
    }

    /// Whether it may take another request after the present one.
    pub(super) fn has_more(&self) -> bool {
        self.requests_left > 1
    }

    /// Ends its request, which the guest has answered. Whether it can take another one,
    /// with the same limits anew.
    async fn end(&mut self, completion: ResourceAny, limits: &ModelLimits) -> bool {
        self.requests_left = self.requests_left.saturating_sub(1);
        if self.requests_left == 0 {
            return false;
        }
        let dropping = completion.resource_drop_async(&mut self.store);
        if self.meter.run(dropping).await.is_err() {
            return false;
        }
        self.meter.renew();
        self.store.data_mut().renew(limits)
    }
}

impl Spare {
    /// The instance that is ready, for a request that ends at `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Option<Running> {
        let Ready { mut running, .. } = self.0.lock().ready.pop()?;
        running.begin(deadline);
        Some(*running)
    }

    /// Keeps the instance that has answered a request for another one, if it may take it
    /// and there are not spare ones enough; has one made otherwise.
    pub(super) async fn give_back(
        self: &Arc<Self>,
        template: &Arc<Template>,
        mut running: Running,
        completion: ResourceAny,
    ) {
        if running.end(completion, &template.limits).await
            && let Some(place) = template.runtime.spare_place()
        {
            self.0.lock().ready.push(Ready {
                running: Box::new(running),
                _place: place,
            });
        } else {
            drop(running);
            self.refill(template);
        }
    }

    /// Has the next instance made, unless it is, or there are spare ones enough.
    pub(super) fn refill(self: &Arc<Self>, template: &Arc<Template>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut next = self.0.lock();
        if next.is_making || !next.ready.is_empty() {
            return;
        }
        let Some(place) = template.runtime.spare_place() else {
            return;
        };
        next.is_making = true;
        drop(next);
        let (spare, template) = (Arc::clone(self), Arc::clone(template));
        runtime.spawn(async move {
            // should it panic, the component goes on without spares
            let made = template.instance(Instant::now() + PROOF_TIMEOUT).await;
            let mut next = spare.0.lock();
            next.is_making = false;
            // the request that makes its own tells why it cannot be
            if let Ok(running) = made {
                next.ready.push(Ready {
                    running: Box::new(running),
                    _place: place,
                });
            }
        });
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = self.0.lock().ready.len();
        f.debug_tuple("Spare").field(&ready).finish()
    }
}
