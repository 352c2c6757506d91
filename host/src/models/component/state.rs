//! What an instance sees of this machine: its settings, its log, clocks, random
//! numbers, and its upstream if it has one. No files, no environment, no sockets.

use std::sync::Arc;

use plugin_sdk::Settings;
use tracing::Level;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime::{Engine, ResourceLimiter, StoreContextMut, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types::{HostOutgoingRequest as _, Method};
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::guest_log::{GuestLog, Print};
use super::network::Network;
use crate::config::ModelLimits;

/// Things of the host that an instance may hold at once, such as requests and their
/// headers: they take the host's memory, not the instance's. An exchange by `wasi:http` is
/// some ten of them; the most that one comes to is a request with headers, trailers and the
/// beginning of its body, some 600 KiB.
const RESOURCES: usize = 200;

/// Of these, what one may keep from a request to the next: its output's streams, say.
const RESOURCES_KEPT: usize = 32;

/// Memory that headers take, to their bytes as they are sent: their limit there is
/// held by the network, this one is of what an instance may pile up.
const FIELD_OVERHEAD: usize = 4;

/// Bytes of a request's method, and of the host and port that it goes to.
const LONGEST_NAME: usize = 512;

/// What an instance may take of memory, and takes.
pub(super) struct Memory {
    limits: StoreLimits,
    /// Bytes of its largest.
    taken: usize,
}

/// The state of one request.
pub(super) struct State {
    pub(super) settings: Arc<Settings>,
    pub(super) log: GuestLog,
    pub(super) memory: Memory,
    pub(super) network: Network,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    pub(super) table: ResourceTable,
}

impl State {
    pub(super) fn new(
        settings: Arc<Settings>,
        log: GuestLog,
        network: Network,
        limits: &ModelLimits,
    ) -> Self {
        let print = |level| Print {
            log: log.clone(),
            level,
        };
        let wasi = WasiCtx::builder()
            .stdout(print(Level::INFO))
            .stderr(print(Level::WARN))
            .allow_tcp(false)
            .allow_udp(false)
            .build();
        let memory_limits = StoreLimitsBuilder::new()
            .memory_size(limits.memory_mib << 20)
            .memories(ModelLimits::MEMORIES as usize)
            .table_elements(limits.table_elements)
            // so that the log says what happened, rather than the guest's allocator
            .trap_on_grow_failure(true)
            .build();
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELD_OVERHEAD * limits.header_bytes);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES);
        Self {
            settings,
            log,
            memory: Memory {
                limits: memory_limits,
                taken: 0,
            },
            network,
            wasi,
            http,
            table,
        }
    }

    /// Makes it the state of another request. Whether it is fit for one: those before have
    /// not piled up things of the host's, nor taken most of the memory, for which the
    /// next one might then want.
    pub(super) fn renew(&mut self, limits: &ModelLimits) -> bool {
        self.network.gate = None;
        self.network.requests_left = limits.upstream_requests;
        self.log.renew(limits.log_lines);
        self.table.iter_mut().count() <= RESOURCES_KEPT
            && self.memory.taken <= (limits.memory_mib << 20) / 2
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let may_grow = self.limits.memory_growing(current, desired, maximum)?;
        if may_grow {
            self.taken = self.taken.max(desired);
        }
        Ok(may_grow)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.memory_grow_failed(error)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.network,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// Interfaces that any component may import. Standard libraries import files and
/// the environment whether they are used or not: there are none behind them.
const OFFERED: [&str; 9] = [
    "model:plugin/config",
    "model:plugin/log",
    "model:plugin/schema",
    "wasi:cli/",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
];

/// Interfaces that a component with an upstream may import as well.
const OFFERED_WITH_UPSTREAM: [&str; 3] = [
    "model:plugin/upstream",
    "wasi:http/types",
    "wasi:http/outgoing-handler",
];

/// Whether `import` is a way to an upstream.
pub(super) fn is_network(import: &str) -> bool {
    OFFERED_WITH_UPSTREAM
        .iter()
        .any(|name| import.starts_with(name))
}

/// Whether `import` is among the interfaces that [`linker`] links.
///
/// # Errors
/// With what to tell the operator.
pub(super) fn check_import(import: &str, has_upstream: bool) -> Result<(), String> {
    let is_offered = OFFERED.iter().any(|name| import.starts_with(name));
    if is_offered || (has_upstream && is_network(import)) {
        Ok(())
    } else if is_network(import) {
        Err(format!("it imports {import}, but the model has no api_url"))
    } else {
        Err(format!("it imports {import}, which no plugin gets here"))
    }
}

/// Links everything but the interfaces of the plugin contract. `wasi:sockets` is
/// not there at all, `wasi:http` only for a model with an upstream.
pub(super) fn linker(engine: &Engine, has_upstream: bool) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    let l = &mut linker;
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(l)?;
    cli::environment::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::exit::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    filesystem::preopens::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    filesystem::types::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    random::insecure::add_to_linker::<State, WasiRandom>(l, |state| state.wasi.random())?;
    random::insecure_seed::add_to_linker::<State, WasiRandom>(l, |state| state.wasi.random())?;
    if has_upstream {
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(l)?;
        bound_names(l)?;
    }
    Ok(linker)
}

type Naming = wasmtime::Result<(Result<(), ()>,)>;

/// Puts a bound to the two texts of a request that its library keeps however long they are.
fn bound_names(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, State>,
         (request, method): (Resource<HostOutgoingRequest>, Method)|
         -> Naming {
            if matches!(&method, Method::Other(name) if name.len() > LONGEST_NAME) {
                return Ok((Err(()),));
            }
            Ok((store.data_mut().http().set_method(request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, State>,
         (request, authority): (Resource<HostOutgoingRequest>, Option<String>)|
         -> Naming {
            if authority
                .as_ref()
                .is_some_and(|name| name.len() > LONGEST_NAME)
            {
                return Ok((Err(()),));
            }
            Ok((store.data_mut().http().set_authority(request, authority)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
