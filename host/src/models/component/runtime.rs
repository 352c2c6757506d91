//! The engine that all components share.

use std::fmt;
use std::fs::DirBuilder;
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plugin_sdk::{Error, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::Component;
use wasmtime::{
    Cache, CacheConfig, Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel,
    PoolingAllocationConfig,
};

use crate::config::Components;

use super::epoch::EpochClock;
use crate::config::ModelLimits;

/// Stack for the host's own functions, beyond what a plugin's calls may take.
const HOST_STACK: usize = 1536 << 10;

/// Modules that a component may be made of (of Python's it is 38), and tables of all of
/// them together.
const CORE_INSTANCES: u32 = 64;
const TABLES: u32 = 4;

/// Most instances that wait for their request, of all components together; so many
/// more than the operator allows to be at work. Only those that answer several requests
/// come to more than one for each component.
const SPARES: u32 = 128;

fn spares(shared: &Components) -> u32 {
    // few, where address space is dear
    SPARES.min(shared.instances / 8)
}

/// What a request is told to wait when all instances are taken.
const RETRY_AFTER_MS: u32 = 1_000;

/// The engine that compiles and runs components, and the places they run in.
/// Built once.
pub struct Runtime {
    pub(super) engine: Engine,
    compiling: Mutex<Cache>,
    pub(super) clock: Arc<EpochClock>,
    pub(super) turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    spares: Arc<Semaphore>,
}

/// Why there is no [`Runtime`].
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The folder for compiled components cannot be used.
    #[error("cannot use the cache folder: {0}")]
    Folder(#[source] std::io::Error),
    /// The pool of instances does not fit.
    #[error(
        "cannot reserve the address space of {instances} component instances, 8 GiB each: \
         lower components.instances, or raise the limit that `ulimit -v` shows: {reason:#}"
    )]
    AddressSpace {
        /// How many were asked for.
        instances: u32,
        /// What the system says.
        reason: wasmtime::Error,
    },
    /// Others could put machine code into the cache folder.
    #[error(
        "{} holds machine code and must be this user's alone: it belongs to user {owner} and has \
         mode {mode:o}; chmod 700 it, or remove it",
        folder.display()
    )]
    Exposed {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
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
    /// made if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be used, or this machine cannot run WebAssembly.
    pub fn new(cache_dir: &Path, shared: &Components) -> Result<Self, RuntimeError> {
        let cache_dir = private_folder(cache_dir)?;
        let mut cache = CacheConfig::new();
        cache.with_directory(cache_dir);
        let cache = Cache::new(cache).map_err(RuntimeError::Engine)?;
        let engine = engine(cache.clone(), shared)?;
        let clock = EpochClock::start(&engine).map_err(RuntimeError::Clock)?;
        // The client for upstreams brings no TLS provider; where the program has
        // chosen one already, that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            engine,
            compiling: Mutex::new(cache),
            clock: Arc::new(clock),
            turns: Arc::new(Semaphore::new(long_turns())),
            places: Arc::new(Semaphore::new(shared.instances as usize)),
            spares: Arc::new(Semaphore::new(spares(shared) as usize)),
        })
    }

    /// Compiles a component, or takes its machine code from the cache; says whether it
    /// was there, and how long that took. One at a time: it takes all cores, and so the
    /// cache's count tells.
    pub(super) fn compile(&self, bytes: &[u8]) -> wasmtime::Result<(Component, bool, Duration)> {
        let cache = self.compiling.lock();
        let (hits, started) = (cache.cache_hits(), Instant::now());
        let component = Component::new(&self.engine, bytes)?;
        let is_cached = cache.cache_hits() > hits;
        Ok((component, is_cached, started.elapsed()))
    }

    /// A place for one instance; without it the pool would fail to instantiate.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        let places = Arc::clone(&self.places);
        places.try_acquire_owned().map_err(|_| overloaded())
    }

    /// A place for an instance that waits for its request, if there is one.
    pub(super) fn spare_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.spares).try_acquire_owned().ok()
    }

    /// The next place that is free, for what can wait.
    pub(super) async fn next_place(&self) -> Result<OwnedSemaphorePermit, Error> {
        let places = Arc::clone(&self.places);
        places.acquire_owned().await.map_err(|_| overloaded())
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
    Error::new(ErrorKind::Overloaded, "too many requests at once").retry_after_ms(RETRY_AFTER_MS)
}

/// Makes the folder, if need be, for this user alone, and makes sure that it is:
/// machine code that is found in it is run.
fn private_folder(folder: &Path) -> Result<PathBuf, RuntimeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(RuntimeError::Folder)?;
    let folder = folder.canonicalize().map_err(RuntimeError::Folder)?;
    let found = folder.metadata().map_err(RuntimeError::Folder)?;
    let (owner, mode) = (found.uid(), found.mode() & 0o777);
    if owner != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
        return Err(RuntimeError::Exposed {
            folder,
            owner,
            mode,
        });
    }
    Ok(folder)
}

fn engine(cache: Cache, shared: &Components) -> Result<Engine, RuntimeError> {
    let instances = shared.instances + spares(shared);
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        // a component is several modules: the plugin itself and its adapters; a number
        // only, nothing is set aside for it
        .total_core_instances(CORE_INSTANCES * instances)
        .total_memories(ModelLimits::MEMORIES * instances)
        .total_tables(TABLES * instances)
        // one with more would take the places of others
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(ModelLimits::MEMORIES)
        .max_tables_per_component(TABLES)
        .total_stacks(instances)
        .total_gc_heaps(0)
        .max_memory_size(ModelLimits::MEMORY_CEILING_MIB << 20)
        .table_elements(ModelLimits::TABLE_CEILING)
        // so much of a used place is cleared by hand rather than by the kernel, if the
        // kernel tells which pages were written
        .linear_memory_keep_resident(512 << 10)
        .table_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto)
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
            RuntimeError::AddressSpace {
                instances: shared.instances,
                reason,
            }
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
