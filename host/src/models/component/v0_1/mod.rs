//! `model:plugin@0.1`: bindings, and the calls in the types of the plugin SDK.

mod convert;
mod upstream;

use plugin_sdk::{Error, Event, PluginInfo, Request, TokenEstimate};
use tracing::Level;
use wasmtime::Store;
use wasmtime::component::{HasSelf, InstancePre, Linker, ResourceAny};

use self::bindings::model::plugin::{config, log, schema, upstream as exchange};
use super::state::State;

/// `local-backend` is this world without `upstream`, and `http-backend` has `wasi:http` in
/// its place: what calls an API is linked apart.
mod bindings {
    wasmtime::component::bindgen!({
        path: "../plugin-sdk/wit/0.1",
        world: "model:plugin/upstream-backend",
        imports: {
            "model:plugin/upstream.send": async,
            "model:plugin/upstream.[method]body.read": async | trappable,
            "model:plugin/upstream.[static]body.end": async | trappable,
        },
        exports: { default: async },
        with: { "model:plugin/upstream.body": super::super::network::Arriving },
    });
}

/// The version in the names of the interfaces.
pub(super) const VERSION: &str = "0.1.";

/// A component, linked and ready to be instantiated.
pub(super) struct Plugin(bindings::UpstreamBackendPre<State>);

/// A live instance of it.
pub(super) struct Instance(bindings::UpstreamBackend);

/// What a call comes to: the outer error finishes the store, the inner one is the
/// plugin's own.
type Called<T> = wasmtime::Result<Result<T, Error>>;

impl Plugin {
    /// Adds the interfaces that this version imports; the one to call an API by only
    /// where there is one.
    pub(super) fn link(linker: &mut Linker<State>, has_upstream: bool) -> wasmtime::Result<()> {
        config::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
        log::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
        if has_upstream {
            exchange::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
        }
        Ok(())
    }

    pub(super) fn new(linked: InstancePre<State>) -> wasmtime::Result<Self> {
        bindings::UpstreamBackendPre::new(linked).map(Self)
    }

    pub(super) async fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<Instance> {
        self.0.instantiate_async(store).await.map(Instance)
    }
}

impl Instance {
    pub(super) async fn describe(&self, store: &mut Store<State>) -> Called<PluginInfo> {
        let backend = self.0.model_plugin_backend();
        let described = backend.call_describe(store).await?;
        Ok(described.map(Into::into).map_err(Into::into))
    }

    pub(super) async fn estimate(
        &self,
        store: &mut Store<State>,
        request: Request,
    ) -> Called<TokenEstimate> {
        let backend = self.0.model_plugin_backend();
        let estimated = backend.call_estimate(store, &request.into()).await?;
        Ok(estimated.map(Into::into).map_err(Into::into))
    }

    pub(super) async fn generate(
        &self,
        store: &mut Store<State>,
        request: Request,
    ) -> Called<ResourceAny> {
        let backend = self.0.model_plugin_backend();
        let accepted = backend.call_generate(store, &request.into()).await?;
        Ok(accepted.map_err(Into::into))
    }

    pub(super) async fn next(
        &self,
        store: &mut Store<State>,
        completion: ResourceAny,
    ) -> Called<Vec<Event>> {
        let completions = self.0.model_plugin_backend().completion();
        let events = completions.call_next(store, completion).await?;
        Ok(events.map(convert::all).map_err(Into::into))
    }
}

impl schema::Host for State {}

impl config::Host for State {
    fn get(&mut self, key: String) -> Option<String> {
        self.settings.get(&key).map(str::to_owned)
    }

    fn keys(&mut self) -> Vec<String> {
        self.settings.keys().map(str::to_owned).collect()
    }
}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String, fields: Vec<(String, String)>) {
        let level = match level {
            log::Level::Trace => Level::TRACE,
            log::Level::Debug => Level::DEBUG,
            log::Level::Info => Level::INFO,
            log::Level::Warn => Level::WARN,
            log::Level::Error => Level::ERROR,
        };
        self.log.write_fields(level, &message, &fields);
    }
}
