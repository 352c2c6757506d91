//! The engine that all components share.

use std::fmt;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use plugin_sdk::{Error, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::{
    Cache, CacheConfig, Config, Engine, InstanceAllocationStrategy, OptLevel,
    PoolingAllocationConfig,
};

use crate::config::Components;

use super::Limits;

/// Stack for the host's own functions, beyond what a plugin's calls may take.
const HOST_STACK: usize = 1536 << 10;

/// How often a computing guest gives way to other tasks, and its CPU time is
/// looked at.
const TICK: Duration = Duration::from_millis(2);

/// What a request is told to wait when all instances are taken.
const RETRY_AFTER_MS: u32 = 1_000;

/// The engine that compiles and runs components, and the places they run in.
/// Built once; its thread ends when the last component that uses it is gone.
pub struct Runtime {
    pub(super) engine: Engine,
    pub(super) turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// Why there is no [`Runtime`].
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The folder for compiled components cannot be used.
    #[error("cannot use the cache folder: {0}")]
    Folder(#[source] std::io::Error),
    /// The pool of instances does not fit.
    #[error(
        "cannot reserve the address space of {instances} component instances, 4 GiB each: \
         lower components.instances, or raise the limit that `ulimit -v` shows: {reason:#}"
    )]
    AddressSpace {
        /// How many were asked for.
        instances: u32,
        /// What the system says.
        reason: wasmtime::Error,
    },
    /// The engine cannot be made.
    #[error("cannot make the WebAssembly engine: {0:#}")]
    Engine(wasmtime::Error),
    /// There is no thread for the clock.
    #[error("cannot start the WebAssembly engine's clock: {0}")]
    Clock(#[source] std::io::Error),
}

impl Runtime {
    /// Makes the engine. Compiled components are kept in `cache_dir`, which is
    /// made if it is missing: machine code that is trusted when it is found again,
    /// so nobody but this server may write there.
    ///
    /// # Errors
    /// When the folder cannot be used, or this machine cannot run WebAssembly.
    pub fn new(cache_dir: &Path, shared: &Components) -> Result<Self, RuntimeError> {
        std::fs::create_dir_all(cache_dir).map_err(RuntimeError::Folder)?;
        let cache_dir = cache_dir.canonicalize().map_err(RuntimeError::Folder)?;
        let mut cache = CacheConfig::new();
        cache.with_directory(cache_dir);
        let cache = Cache::new(cache).map_err(RuntimeError::Engine)?;
        let engine = engine(cache, shared)?;
        start_clock(&engine).map_err(RuntimeError::Clock)?;
        // The client for upstreams brings no TLS provider; where the program has
        // chosen one already, that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            engine,
            turns: Arc::new(Semaphore::new(long_turns())),
            places: Arc::new(Semaphore::new(shared.instances as usize)),
        })
    }

    /// A place for one instance; without it the pool would fail to instantiate.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        let places = Arc::clone(&self.places);
        places.try_acquire_owned().map_err(|_| overloaded())
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("free", &self.places.available_permits())
            .finish_non_exhaustive()
    }
}

/// There is no place for another instance.
pub(super) fn overloaded() -> Error {
    let mut error = Error::new(ErrorKind::Overloaded, "too many requests at once");
    error.retry_after_ms = Some(RETRY_AFTER_MS);
    error
}

fn engine(cache: Cache, shared: &Components) -> Result<Engine, RuntimeError> {
    let instances = shared.instances;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        // a component is several modules: the plugin itself and its adapters; a number
        // only, nothing is set aside for it
        .total_core_instances(32 * instances)
        .total_memories(instances)
        .total_tables(4 * instances)
        .total_stacks(instances)
        .total_gc_heaps(0)
        .max_memory_size(Limits::MEMORY_CEILING_MIB << 20)
        .table_elements(Limits::TABLE_CEILING)
        // so much of a used place is cleared by hand rather than by the kernel
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(100);
    let stack = shared.stack_kib << 10;
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // no use for it before model:plugin@0.2, and much machinery
        .concurrency_support(false)
        .max_wasm_stack(stack)
        .async_stack_size(stack + HOST_STACK)
        .cranelift_opt_level(OptLevel::Speed)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .cache(Some(cache));
    Engine::new(&config).map_err(|reason| {
        if reason.is::<rustix::io::Errno>() {
            RuntimeError::AddressSpace { instances, reason }
        } else {
            RuntimeError::Engine(reason)
        }
    })
}

/// Guests that may compute for long at once: as many as there are threads, but one.
fn long_turns() -> usize {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    threads.saturating_sub(1).max(1)
}

/// A thread, not a task: a guest that keeps all workers busy must not stop it.
fn start_clock(engine: &Engine) -> std::io::Result<()> {
    let engine = engine.weak();
    let tick = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(TICK);
        }
    };
    thread::Builder::new()
        .name("wasm-clock".to_owned())
        .spawn(tick)?;
    Ok(())
}
