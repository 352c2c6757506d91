//! Models: what the host knows of any of them, and the set that is live.
//!
//! A request takes the [`Live`] set once and keeps it, so that a reload never
//! changes a model under it; a backend ends with the last request that holds it.

pub mod component;
mod loader;
pub mod native;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use parking_lot::Mutex;
use plugin_sdk::{Error, ErrorKind, Event, PluginInfo, Request, TokenEstimate};
use tokio::sync::watch;

use crate::config;

pub use loader::Loader;

use loader::Found;

/// How long a request waits for a model that is loading.
const PATIENCE: Duration = Duration::from_secs(10);

/// A model's plugin, ready to generate.
#[derive(Debug)]
pub enum Backend {
    /// Compiled into this program.
    Native(native::Native),
    /// Loaded from a file.
    Component(component::Component),
}

/// A backend at the service of one request.
#[derive(Debug)]
pub enum Session<'a> {
    /// Of a native plugin, which all requests share, and the number of the request's
    /// API key.
    Native(&'a native::Native, i64),
    /// An instance of a component, which is this request's alone meanwhile.
    Component(Box<component::Session<'a>>),
}

/// One answer in the making. Dropping it cancels it.
#[derive(Debug)]
pub enum Completion {
    /// By a native plugin.
    Native(native::Completion),
    /// By a component.
    Component(Box<component::Completion>),
}

impl Backend {
    /// What the plugin says it is.
    pub fn info(&self) -> &PluginInfo {
        match self {
            Self::Native(native) => native.info(),
            Self::Component(component) => component.info(),
        }
    }

    /// SHA-256 of the component, in hex.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Native(_) => None,
            Self::Component(component) => Some(component.digest()),
        }
    }

    /// Where a local model was loaded from.
    pub fn source(&self) -> Option<String> {
        let model = self.info().models.first()?;
        let source = model.ext.iter().find(|ext| ext.name == "source")?;
        serde_json::from_str(&source.value).ok()
    }

    /// Tokens of prompt and answer together that the model can take.
    pub fn context_window(&self) -> Option<u32> {
        self.info().models.first()?.context_window
    }

    /// The most tokens of an answer that the model can give.
    pub fn max_output_tokens(&self) -> Option<u32> {
        self.info().models.first()?.max_output_tokens
    }

    /// What one request needs of the backend; the request came with the API key of
    /// this number, or 0 where with none, and may take this long from now.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when there is no place for it, or that the plugin
    /// failed.
    pub async fn session(&self, key: i64, timeout: Duration) -> Result<Session<'_>, Error> {
        match self {
            Self::Native(native) => Ok(Session::Native(native, key)),
            Self::Component(component) => {
                let session = component.session(timeout).await?;
                Ok(Session::Component(Box::new(session)))
            }
        }
    }
}

impl Backend {
    /// Starts a completion that no estimate precedes.
    ///
    /// # Errors
    /// Those of [`Self::session`] and [`Session::generate`].
    pub async fn generate(&self, request: Request) -> Result<Completion, Error> {
        let timeout = Duration::from_millis(request.deadline_ms.into());
        self.session(0, timeout).await?.generate(request).await
    }
}

impl Session<'_> {
    /// How many tokens the prompt will be.
    ///
    /// # Errors
    /// The plugin's own, [`ErrorKind::Unsupported`] among them.
    pub async fn estimate(&mut self, request: &Request) -> Result<TokenEstimate, Error> {
        match self {
            Self::Native(native, _) => native.estimate(request).await,
            Self::Component(session) => session.estimate(request).await,
        }
    }

    /// Starts the completion.
    ///
    /// # Errors
    /// The plugin's own, or that it failed.
    pub async fn generate(self, request: Request) -> Result<Completion, Error> {
        match self {
            Self::Native(native, key) => {
                native.generate(key, request).await.map(Completion::Native)
            }
            Self::Component(session) => {
                let completion = session.generate(request).await?;
                Ok(Completion::Component(Box::new(completion)))
            }
        }
    }
}

impl Completion {
    /// What happened since the last call; see [`plugin_sdk::Completion::next`].
    ///
    /// # Errors
    /// The plugin's own, or that it failed.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        match self {
            Self::Native(completion) => completion.next().await,
            Self::Component(completion) => completion.next().await,
        }
    }

    /// Whether what made it may make another one, once it has ended.
    pub fn is_kept(&self) -> bool {
        match self {
            Self::Native(_) => false,
            Self::Component(completion) => completion.is_kept(),
        }
    }

    /// Ends one that is over; nobody should wait for what that takes. One that is not is
    /// cancelled, as if it were dropped.
    pub async fn end(self) {
        match self {
            Self::Native(completion) => drop(completion),
            Self::Component(completion) => completion.end().await,
        }
    }
}

/// Whether a model can answer.
#[derive(Clone, Debug)]
pub enum State {
    /// Loads at its first request.
    OnDemand,
    /// Loads now.
    Loading,
    /// Answers.
    Ready(Arc<Backend>),
    /// Cannot answer, for this reason.
    Unavailable(String),
}

impl State {
    /// Whether the backend is open or cannot be.
    pub fn is_decided(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::Unavailable(_))
    }
}

/// A model of the configuration with its backend.
#[derive(Clone, Debug)]
pub struct Model {
    /// As configured.
    pub spec: config::Model,
    /// Why the latest configuration of it is not what runs.
    pub problem: Option<String>,
    slot: Arc<Slot>,
}

/// A backend's place: the same one for as long as nothing that made it changes.
#[derive(Debug)]
struct Slot {
    state: watch::Sender<State>,
    fingerprint: [u8; 32],
    /// The component's file as it was when it went into the fingerprint, until it is
    /// loaded: what is compiled is what was compared.
    found: Mutex<Found>,
}

impl Model {
    /// A model whose backend is not open yet; reads the file of a component.
    pub fn new(spec: config::Model) -> Self {
        let state = match &spec.unavailable {
            Some(reason) => State::Unavailable(reason.clone()),
            None => State::OnDemand,
        };
        let found = Found::of(&spec);
        let slot = Arc::new(Slot {
            state: watch::Sender::new(state),
            fingerprint: found.fingerprint(&spec),
            found: Mutex::new(found),
        });
        Self {
            spec,
            problem: None,
            slot,
        }
    }

    /// This model as `wanted` configures it, if that has no need of another
    /// backend.
    pub fn reconfigured(&self, wanted: &Self) -> Option<Self> {
        let same = self.slot.fingerprint == wanted.slot.fingerprint;
        let failed = matches!(&*self.slot.state.borrow(), State::Unavailable(_));
        (same && !failed).then(|| Self {
            spec: wanted.spec.clone(),
            problem: None,
            slot: Arc::clone(&self.slot),
        })
    }

    /// This model, as it is but for its name.
    pub fn named(&self, name: &str) -> Self {
        let mut this = self.clone();
        name.clone_into(&mut this.spec.name);
        this
    }

    /// Whether `wanted` is configured in another way.
    pub fn differs(&self, wanted: &Self) -> bool {
        self.slot.fingerprint != wanted.slot.fingerprint
            || self.spec.name != wanted.spec.name
            || self.spec.price_per_million != wanted.spec.price_per_million
            || self.spec.preload != wanted.spec.preload
    }

    /// Whether both have one backend.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slot, &other.slot)
    }

    /// Whether it can answer.
    pub fn state(&self) -> State {
        self.slot.state.borrow().clone()
    }

    /// The backend, opened if need be, however long that takes.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub async fn load(&self, loader: &Loader) -> Result<Arc<Backend>, String> {
        self.begin_loading(loader);
        match self.decided().await {
            Some(State::Ready(backend)) => Ok(backend),
            Some(State::Unavailable(reason)) => Err(reason),
            _ => Err("it does not load".to_owned()),
        }
    }

    /// Has the backend opened, unless it is open or being opened, by a task of its own:
    /// it ends with the last who has the model, and no sooner.
    pub fn begin_loading(&self, loader: &Loader) {
        let is_idle = self.slot.state.send_if_modified(|state| {
            let is_idle = matches!(state, State::OnDemand);
            if is_idle {
                *state = State::Loading;
            }
            is_idle
        });
        if !is_idle {
            return;
        }
        let (spec, loader) = (self.spec.clone(), loader.clone());
        let (slot, mut state) = (Arc::downgrade(&self.slot), self.slot.state.subscribe());
        let found = std::mem::take(&mut *self.slot.found.lock());
        tokio::spawn(async move {
            // whatever happens, the model must not be loading for ever
            let opened = AssertUnwindSafe(loader.open(&spec, found)).catch_unwind();
            let is_abandoned = async { state.wait_for(|_| false).await.is_err() };
            let opened = tokio::select! {
                opened = opened => opened.unwrap_or_else(|_| Err("loading it failed".to_owned())),
                _ = is_abandoned => return,
            };
            let Some(slot) = slot.upgrade() else { return };
            let state = match opened {
                Ok(backend) => {
                    let source = backend.source();
                    tracing::info!(model = spec.name, source, "model is ready");
                    State::Ready(Arc::new(backend))
                }
                Err(reason) => {
                    tracing::warn!(model = spec.name, reason, "model is unavailable");
                    State::Unavailable(reason)
                }
            };
            slot.state.send_replace(state);
        });
    }

    /// Waits until the backend is open or cannot be: the state then, or none if the model
    /// is gone before. Who waits does not have the model.
    pub fn decided(&self) -> impl Future<Output = Option<State>> + Send + use<> {
        let mut state = self.slot.state.subscribe();
        async move {
            let decided = state.wait_for(State::is_decided).await;
            decided.ok().map(|state| state.clone())
        }
    }

    /// The backend, opened if need be.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`]; why there is none is in the detail.
    pub async fn backend(&self, loader: &Loader) -> Result<Arc<Backend>, Error> {
        if let State::Ready(backend) = &*self.slot.state.borrow() {
            return Ok(Arc::clone(backend));
        }
        self.begin_loading(loader);
        let decided = tokio::time::timeout(PATIENCE, self.decided()).await;
        match decided.ok().flatten() {
            Some(State::Ready(backend)) => Ok(backend),
            // the reason is the operator's: it may name folders, and what is behind the model
            Some(State::Unavailable(reason)) => {
                Err(unavailable("model_unavailable", "the model is unavailable").detail(reason))
            }
            Some(State::Loading | State::OnDemand) | None => {
                let loading = unavailable("model_loading", "the model is still loading");
                Err(loading.retry_after_ms(5_000))
            }
        }
    }
}

fn unavailable(code: &str, message: &str) -> Error {
    Error::new(ErrorKind::Overloaded, message).code(code)
}

/// The models on offer.
#[derive(Clone, Debug, Default)]
pub struct Live {
    models: BTreeMap<i64, Arc<Model>>,
}

impl Live {
    /// All models, by number.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values()
    }

    /// The model with this number.
    pub fn by_id(&self, id: i64) -> Option<&Arc<Model>> {
        self.models.get(&id)
    }

    /// The model with this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Model>> {
        self.models().find(|model| model.spec.name == name)
    }

    /// Whether all models that should be loaded at start are, or cannot be.
    fn is_decided(&self) -> bool {
        let mut preloaded = self.models().filter(|model| model.spec.preload);
        preloaded.all(|model| model.state().is_decided())
    }

    /// Puts a model in the place of the one with its number.
    pub fn insert(&mut self, model: Model) {
        self.models.insert(model.spec.id, Arc::new(model));
    }
}

/// The set that is live now; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Current {
    live: Arc<ArcSwap<Live>>,
    has_started: Arc<AtomicBool>,
}

impl Current {
    /// The set as it is now, to keep for as long as a request takes.
    pub fn load(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another set in its place.
    pub fn swap(&self, live: Live) {
        if live.is_decided() {
            self.has_started.store(true, Ordering::Relaxed);
        }
        self.live.store(Arc::new(live));
    }

    /// Whether there was a set whose models were all loaded that should be at start, or
    /// could not be. What is added to it later holds nothing back.
    pub fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Relaxed)
    }
}
