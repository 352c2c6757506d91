//! Model backends that are WebAssembly components.
//!
//! A component is compiled and checked once. Each request then gets an instance of
//! its own, which holds that request's data, limits and pending upstream request,
//! and ends with it: no request sees another's, and one that traps hurts no other.
//!
//! - `runtime`: the engine that all components share
//! - `state`: what an instance sees of this machine
//! - `network`: the way to its model's upstream
//! - `meter`, `journal`: how long, and what is written
//! - `v0_1`: the plugin contract, one folder for each version

mod completion;
mod failure;
mod journal;
mod meter;
mod network;
mod runtime;
mod state;
#[cfg(test)]
mod tests;
mod v0_1;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_sdk::{Error, ErrorKind, PluginInfo, Request, Settings, TokenEstimate};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;

pub use crate::config::ModelLimits as Limits;

pub use self::completion::Completion;
pub use self::network::Upstream;
pub use self::runtime::Runtime;

use self::journal::Journal;
use self::meter::Meter;
use self::network::{Gate, Network};
use self::state::State;
use self::v0_1::Plugin;

/// How long a component may take to say what it is.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to estimate a prompt, however long the request may take.
const ESTIMATE_TIMEOUT: Duration = Duration::from_secs(1);

/// A component with everything that the operator decides about it.
#[derive(Debug)]
pub struct Spec {
    /// Name of the model, for the log.
    pub model: String,
    /// The `.wasm` file.
    pub path: PathBuf,
    /// What the component may read of its configuration.
    pub settings: Settings,
    /// What it may reach; without it, it has no network.
    pub upstream: Option<Upstream>,
    /// What a request may take.
    pub limits: Limits,
}

/// A component, compiled, checked and ready to be instantiated.
pub struct Component {
    runtime: Arc<Runtime>,
    plugin: Plugin,
    model: Arc<str>,
    settings: Arc<Settings>,
    upstream: Option<Arc<Upstream>>,
    gate: Option<Arc<Gate>>,
    limits: Limits,
    info: PluginInfo,
    digest: String,
}

/// An instance's store for one request. Dropping it stops whatever it does.
struct Session {
    store: Store<State>,
    meter: Meter,
    _place: OwnedSemaphorePermit,
}

impl Component {
    /// Compiles a component, or takes it from the cache, checks what it imports
    /// and exports, and has it describe itself.
    ///
    /// # Errors
    /// With the reason why the model is unavailable, for the operator.
    pub async fn open(runtime: &Arc<Runtime>, spec: Spec) -> Result<Self, Error> {
        let name = spec.path.display().to_string();
        let unusable = |why: String| Error::new(ErrorKind::Internal, format!("{name}: {why}"));

        let model: Arc<str> = spec.model.into();
        let upstream = spec.upstream.map(Arc::new);
        let gate = match upstream.clone() {
            Some(upstream) => Some(Gate::new(Arc::clone(&model), upstream, spec.limits.clone())),
            None => None,
        };
        let gate = gate.transpose().map_err(unusable)?.map(Arc::new);

        // compiling takes all cores for a while, so it stays off the async threads
        let compiling = {
            let (runtime, has_upstream) = (Arc::clone(runtime), upstream.is_some());
            tokio::task::spawn_blocking(move || compile(&runtime, &spec.path, has_upstream))
        };
        let (plugin, digest) = compiling
            .await
            .map_err(|error| unusable(error.to_string()))?
            .map_err(unusable)?;

        let mut component = Self {
            runtime: Arc::clone(runtime),
            plugin,
            model,
            settings: Arc::new(spec.settings),
            upstream,
            gate,
            limits: spec.limits,
            info: PluginInfo::default(),
            digest,
        };
        component.info = component.describe().await?;
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

    /// How many tokens the prompt will be.
    ///
    /// # Errors
    /// The plugin's own, [`ErrorKind::Unsupported`] among them, or that it failed.
    pub async fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        let mut session = self.session(deadline_of(request).min(ESTIMATE_TIMEOUT), true)?;
        let Session { store, meter, .. } = &mut session;
        let instance = meter.run(self.plugin.instantiate(store)).await?;
        let estimated = meter.run(instance.estimate(store, request.clone())).await?;
        estimated.map_err(|error| self.by_plugin(error))
    }

    /// Starts a completion. The request's `deadline_ms` counts from now, for the
    /// completion as a whole.
    ///
    /// # Errors
    /// The plugin's own, [`ErrorKind::Overloaded`] when too many instances run,
    /// [`ErrorKind::Timeout`], or that the plugin failed: [`ErrorKind::Upstream`]
    /// with the code `plugin_failed`.
    pub async fn generate(&self, request: Request) -> Result<Completion, Error> {
        let mut session = self.session(deadline_of(&request), false)?;
        let Session { store, meter, .. } = &mut session;
        let instance = meter.run(self.plugin.instantiate(store)).await?;
        let accepted = meter.run(instance.generate(store, request)).await?;
        let resource = accepted.map_err(|error| self.by_plugin(error))?;
        let upstream = self.upstream.clone();
        let most = self.limits.response_bytes;
        Ok(Completion::new(session, instance, resource, upstream, most))
    }

    async fn describe(&self) -> Result<PluginInfo, Error> {
        let mut session = self.session(DESCRIBE_TIMEOUT, true)?;
        let Session { store, meter, .. } = &mut session;
        let instance = meter.run(self.plugin.instantiate(store)).await?;
        let described = meter.run(instance.describe(store)).await?;
        described.map_err(|error| self.by_plugin(error))
    }

    /// A store for one request; an `offline` one reaches nothing.
    fn session(&self, timeout: Duration, offline: bool) -> Result<Session, Error> {
        let place = self.runtime.place()?;
        let deadline = Instant::now() + timeout;
        let network = Network {
            gate: self.gate.clone().filter(|_| !offline),
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
        Ok(Session {
            store,
            meter,
            _place: place,
        })
    }

    fn by_plugin(&self, error: Error) -> Error {
        failure::by_plugin(self.upstream.as_deref(), error)
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component")
            .field("model", &self.model)
            .field("info", &self.info)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

fn deadline_of(request: &Request) -> Duration {
    Duration::from_millis(request.deadline_ms.into())
}

fn compile(runtime: &Runtime, path: &Path, has_upstream: bool) -> Result<(Plugin, String), String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read it: {error}"))?;
    let digest = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let engine = &runtime.engine;
    let component = wasmtime::component::Component::new(engine, &bytes)
        .map_err(|error| format!("not a WebAssembly component that can run here: {error:#}"))?;

    let shape = component.component_type();
    for (import, _) in shape.imports(engine) {
        state::check_import(import, has_upstream)?;
    }
    let exports: Vec<&str> = shape.exports(engine).map(|(name, _)| name).collect();
    check_exports(&exports)?;

    let link = || {
        let mut linker = state::linker(engine, has_upstream)?;
        Plugin::link(&mut linker)?;
        Plugin::new(linker.instantiate_pre(&component)?)
    };
    let plugin = link().map_err(|error| format!("it does not fit this version: {error:#}"))?;
    Ok((plugin, digest))
}

/// Whether a known version of the contract is among the exports; a component may
/// have others beside it.
fn check_exports(exports: &[&str]) -> Result<(), String> {
    let mut versions = exports
        .iter()
        .filter_map(|export| export.strip_prefix("model:plugin/backend@"));
    match versions
        .clone()
        .find(|version| version.starts_with(v0_1::VERSION))
    {
        Some(_) => Ok(()),
        None => Err(match versions.next() {
            Some(version) => format!(
                "it is made for model:plugin@{version}, and this version of model-host runs {}x",
                v0_1::VERSION
            ),
            None => "it exports no model:plugin/backend, so it is no plugin".to_owned(),
        }),
    }
}
