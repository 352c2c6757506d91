//! Model backends that are WebAssembly components.
//!
//! A component is compiled and checked once. Each request then gets an instance of
//! its own, which holds that request's data, limits and pending upstream request,
//! and ends with it: no request sees another's, and one that traps hurts no other.
//! The next one is made in advance, so that a request need not wait for it. Where the
//! operator allows it, an instance that has answered takes another request.
//!
//! - `artifact`, `registry`: where a component comes from
//! - `runtime`: the engine that all components share
//! - `link`: from bytes to what can be instantiated
//! - `instance`: how an instance is made, and kept for its request
//! - `state`: what an instance sees of this machine
//! - `network`: the way to its model's upstream
//! - `epoch`, `meter`, `guest_log`: the clock, how long, and what is written
//! - `v0_1`: the plugin contract, one folder for each version

mod artifact;
mod completion;
mod epoch;
mod failure;
mod guest_log;
mod instance;
mod link;
mod meter;
mod network;
mod registry;
mod runtime;
mod state;
#[cfg(test)]
mod tests;
mod v0_1;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_sdk::{
    Error, ErrorKind, Event, Params, PluginInfo, Prompt, Request, Settings, TokenEstimate,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::ModelLimits;

pub use self::artifact::Artifact;
pub use self::completion::Completion;
pub use self::network::Upstream;
pub use self::registry::Pulled;
pub use self::runtime::Runtime;

use self::instance::{Running, Spare, Template};
use self::network::Gate;

/// How long a component may take to say what it is, and for its rehearsal.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to estimate a prompt, however long the request may take: so
/// long that a machine with many requests for each core does not come to it.
const ESTIMATE_TIMEOUT: Duration = Duration::from_secs(5);

/// A component with everything that the operator decides about it.
#[derive(Debug)]
pub struct Spec {
    /// Name of the model, for the log.
    pub model: String,
    /// Its bytes.
    pub artifact: Artifact,
    /// What the component may read of its configuration.
    pub settings: Settings,
    /// What it may reach; without it, it has no network.
    pub upstream: Option<Upstream>,
    /// What a request may take.
    pub limits: ModelLimits,
}

/// A component, compiled, checked and ready to be instantiated.
pub struct Component {
    template: Arc<Template>,
    spare: Arc<Spare>,
    gate: Option<Arc<Gate>>,
    info: PluginInfo,
    /// Whether it may know how many tokens a prompt is.
    estimates: bool,
    digest: String,
}

/// An instance for one request, which has not begun to generate. Dropping it stops
/// whatever it does.
pub struct Session<'a> {
    component: &'a Component,
    running: Running,
    place: OwnedSemaphorePermit,
}

impl Component {
    /// Compiles a component, or takes it from the cache, and proves it: checks what
    /// it imports and exports, has it describe itself, and rehearses a request.
    ///
    /// # Errors
    /// With the reason why the model is unavailable, for the operator.
    pub async fn open(runtime: &Arc<Runtime>, spec: Spec) -> Result<Self, Error> {
        let name = spec.artifact.name().to_owned();
        let unusable = |why: String| Error::new(ErrorKind::Internal, format!("{name}: {why}"));

        let model: Arc<str> = spec.model.into();
        let limits = Arc::new(spec.limits);
        let upstream = spec.upstream.map(Arc::new);
        let gate = upstream
            .clone()
            .map(|upstream| Gate::new(Arc::clone(&model), upstream, Arc::clone(&limits)));
        let gate = gate.transpose().map_err(unusable)?.map(Arc::new);

        // compiling takes all cores for a while, so it stays off the async threads
        let digest = spec.artifact.digest().to_owned();
        let linking = {
            let (runtime, has_upstream) = (Arc::clone(runtime), upstream.is_some());
            tokio::task::spawn_blocking(move || link::link(&runtime, &spec.artifact, has_upstream))
        };
        let linked = linking
            .await
            .map_err(|error| unusable(error.to_string()))?
            .map_err(unusable)?;
        let (milliseconds, is_cached) = (linked.took.as_secs_f64() * 1e3, linked.is_cached);
        tracing::info!(
            model = &*model,
            digest,
            is_cached,
            milliseconds,
            "component compiled"
        );

        let template = Template {
            runtime: Arc::clone(runtime),
            plugin: linked.plugin,
            model,
            settings: Arc::new(spec.settings),
            upstream,
            limits,
        };
        let mut component = Self {
            template: Arc::new(template),
            spare: Arc::default(),
            gate,
            info: PluginInfo::default(),
            estimates: true,
            digest,
        };
        let failed = |what| move |error: Error| unproven(what, error);
        component.info = component.describe().await.map_err(failed("describe"))?;
        let rehearsal = component.rehearse(linked.has_network).await;
        component.estimates = rehearsal.map_err(failed("a short request"))?;
        Ok(component)
    }

    /// What the component says it is.
    pub fn info(&self) -> &PluginInfo {
        &self.info
    }

    /// SHA-256 of the `.wasm` file, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// An instance for a request that may take this long from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when too many instances run, or that the plugin
    /// failed: [`ErrorKind::Upstream`] with the code `plugin_failed`.
    pub async fn session(&self, timeout: Duration) -> Result<Session<'_>, Error> {
        let session = self
            .session_at(self.template.runtime.place()?, timeout)
            .await?;
        self.spare.refill(&self.template);
        Ok(session)
    }

    /// Starts a completion in a session of its own, which ends at the request's deadline.
    ///
    /// # Errors
    /// Those of [`Self::session`] and [`Session::generate`].
    #[cfg(test)]
    async fn generate(&self, request: Request) -> Result<Completion, Error> {
        let timeout = Duration::from_millis(request.deadline_ms.into());
        self.session(timeout).await?.generate(request).await
    }

    async fn describe(&self) -> Result<PluginInfo, Error> {
        let place = self.template.runtime.next_place().await?;
        let mut running = self.session_at(place, PROOF_TIMEOUT).await?.running;
        let described = running.instance.describe(&mut running.store);
        let described = running.meter.run(described).await?;
        described.map_err(|error| self.by_plugin(error))
    }

    /// Runs a short request as far as it goes without the network. A plugin may refuse
    /// it; it must not trap. Returns whether it estimates.
    async fn rehearse(&self, has_network: bool) -> Result<bool, Error> {
        let Template {
            model, settings, ..
        } = &*self.template;
        let request = Request {
            request_id: "rehearsal".to_owned(),
            model: settings.get("model_name").unwrap_or(model).to_owned(),
            prompt: Prompt::Text("Hello".to_owned()),
            params: Params {
                max_tokens: Some(1),
                ..Params::default()
            },
            tools: Vec::new(),
            deadline_ms: u32::try_from(PROOF_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
            ext: Vec::new(),
        };
        let is_refusal =
            |error: &Error| !failure::is_plugins(error) && error.kind != ErrorKind::Timeout;
        let place = self.template.runtime.next_place().await?;
        let mut session = self.session_at(place, PROOF_TIMEOUT).await?;
        let estimates = match session.estimate_within(PROOF_TIMEOUT, &request).await {
            Err(error) if !is_refusal(&error) => return Err(error),
            Err(error) => error.kind != ErrorKind::Unsupported,
            Ok(_) => true,
        };
        if has_network {
            return Ok(estimates);
        }
        let mut completion = match session.generate(request).await {
            Ok(completion) => completion,
            // made for chats, say
            Err(error) if is_refusal(&error) => return Ok(estimates),
            Err(error) => return Err(error),
        };
        while !matches!(completion.next().await?.last(), Some(Event::Finish(_))) {}
        Ok(estimates)
    }

    /// An instance that reaches nothing yet.
    async fn session_at(
        &self,
        place: OwnedSemaphorePermit,
        timeout: Duration,
    ) -> Result<Session<'_>, Error> {
        let deadline = Instant::now() + timeout;
        let running = match self.spare.take(deadline) {
            Some(spare) => spare,
            None => self.template.instance(deadline).await?,
        };
        Ok(Session {
            component: self,
            running,
            place,
        })
    }

    fn by_plugin(&self, error: Error) -> Error {
        failure::by_plugin(self.template.upstream.as_deref(), error)
    }
}

impl Session<'_> {
    /// How many tokens the prompt will be. The instance has no network for it, and is
    /// not asked where the component has said that it does not estimate.
    ///
    /// # Errors
    /// The plugin's own, [`ErrorKind::Unsupported`] among them, or that it failed;
    /// then the instance is of no more use.
    pub async fn estimate(&mut self, request: &Request) -> Result<TokenEstimate, Error> {
        if !self.component.estimates {
            // a call less for each request
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the plugin does not estimate",
            ));
        }
        self.estimate_within(ESTIMATE_TIMEOUT, request).await
    }

    async fn estimate_within(
        &mut self,
        timeout: Duration,
        request: &Request,
    ) -> Result<TokenEstimate, Error> {
        let running = &mut self.running;
        let estimated = running
            .instance
            .estimate(&mut running.store, request.clone());
        let estimated = running.meter.run_within(timeout, estimated).await?;
        estimated.map_err(|error| self.component.by_plugin(error))
    }

    /// Starts the completion, which has what is left of the session's time.
    ///
    /// # Errors
    /// The plugin's own, [`ErrorKind::Timeout`], or that the plugin failed:
    /// [`ErrorKind::Upstream`] with the code `plugin_failed`.
    pub async fn generate(self, request: Request) -> Result<Completion, Error> {
        let Self {
            component,
            place,
            mut running,
        } = self;
        running.store.data_mut().network.gate = component.gate.clone();
        let accepted = running.instance.generate(&mut running.store, request);
        let accepted = running.meter.run(accepted).await?;
        let resource = accepted.map_err(|error| component.by_plugin(error))?;
        Ok(Completion::new(component, running, resource, place))
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("component", self.component)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component")
            .field("model", &self.template.model)
            .field("info", &self.info)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// Why a component does not go live, for the operator.
fn unproven(what: &str, error: Error) -> Error {
    let is_plugins = failure::is_plugins(&error);
    let why = match error.detail {
        Some(detail) if is_plugins => detail,
        _ => error.message,
    };
    Error::new(error.kind, format!("it failed at {what}: {why}"))
}
