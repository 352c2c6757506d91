//! From the bytes of a component to what can be instantiated.

use std::time::Duration;

use super::artifact::Artifact;
use super::runtime::Runtime;
use super::state;
use super::v0_1::{self, Plugin};

/// A component that fits this host.
pub(super) struct Linked {
    pub(super) plugin: Plugin,
    /// Whether it can call anything.
    pub(super) has_network: bool,
    /// Whether its machine code was found rather than made.
    pub(super) is_cached: bool,
    /// How long that took.
    pub(super) took: Duration,
}

/// Compiles a component, checks what it imports and exports, and links it.
///
/// # Errors
/// With what to tell the operator.
pub(super) fn link(
    runtime: &Runtime,
    artifact: &Artifact,
    has_upstream: bool,
) -> Result<Linked, String> {
    let (component, is_cached, took) = runtime
        .compile(artifact.bytes())
        .map_err(|error| format!("not a WebAssembly component that can run here: {error:#}"))?;

    let engine = &runtime.engine;
    let shape = component.component_type();
    let mut has_network = false;
    for (import, _) in shape.imports(engine) {
        state::check_import(import, has_upstream)?;
        has_network |= state::is_network(import);
    }
    let exports: Vec<&str> = shape.exports(engine).map(|(name, _)| name).collect();
    check_exports(&exports)?;

    let link = || {
        let mut linker = state::linker(engine, has_upstream)?;
        Plugin::link(&mut linker, has_upstream)?;
        Plugin::new(linker.instantiate_pre(&component)?)
    };
    let plugin = link().map_err(|error| format!("it does not fit this version: {error:#}"))?;
    Ok(Linked {
        plugin,
        has_network,
        is_cached,
        took,
    })
}

/// Whether a known version of the contract is among the exports; a component may
/// have others beside it.
pub(super) fn check_exports(exports: &[&str]) -> Result<(), String> {
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
