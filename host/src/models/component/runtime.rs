//! The engine that all components share.

use std::fmt;
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

use super::limits::Limits;

/// Instances alive at once, one a request. Each takes some KiB of real memory,
/// what its plugin uses, and 4 GiB of address space, of which there is plenty.
const INSTANCES: u32 = 1000;

/// How often a computing guest gives way to other tasks, and its CPU time is
/// looked at.
const TICK: Duration = Duration::from_millis(10);

/// What a request is told to wait when all instances are taken.
const RETRY_AFTER_MS: u32 = 1_000;

/// The engine that compiles and runs components, and the places they run in.
/// Built once; its thread ends when the last component that uses it is gone.
pub struct Runtime {
    pub(super) engine: Engine,
    places: Arc<Semaphore>,
}

/// Why there is no [`Runtime`].
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The folder for compiled components cannot be used.
    #[error("cannot use the cache folder: {0}")]
    Folder(#[source] std::io::Error),
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
    pub fn new(cache_dir: &Path) -> Result<Self, RuntimeError> {
        std::fs::create_dir_all(cache_dir).map_err(RuntimeError::Folder)?;
        let cache_dir = cache_dir.canonicalize().map_err(RuntimeError::Folder)?;
        let mut cache = CacheConfig::new();
        cache.with_directory(cache_dir);
        let cache = Cache::new(cache).map_err(RuntimeError::Engine)?;
        let engine = Engine::new(&config(cache)).map_err(RuntimeError::Engine)?;
        start_clock(&engine).map_err(RuntimeError::Clock)?;
        // The client for upstreams brings no TLS provider; where the program has
        // chosen one already, that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            engine,
            places: Arc::new(Semaphore::new(INSTANCES as usize)),
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

fn config(cache: Cache) -> Config {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES)
        // a component is several modules: the plugin itself and its adapters
        .total_core_instances(4 * INSTANCES)
        .total_memories(2 * INSTANCES)
        .total_tables(4 * INSTANCES)
        .total_stacks(INSTANCES)
        .max_memory_size(Limits::MEMORY_CEILING_MIB << 20)
        .table_elements(20_000)
        // so much of a used place is cleared by hand rather than by the kernel
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(100);
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // no use for it before model:plugin@0.2, and much machinery
        .concurrency_support(false)
        .cranelift_opt_level(OptLevel::Speed)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .cache(Some(cache));
    config
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
