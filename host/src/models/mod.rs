//! Models: what the host knows of any of them, and the set that is live.
//!
//! A request takes the [`Live`] set once and keeps it, so that a reload never
//! changes a model under it; a backend ends with the last request that holds it.

pub mod component;
mod loader;
pub mod native;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
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

    /// Opens the backend, unless it is open or being opened, and waits until it
    /// is open or cannot be.
    pub async fn load(&self, loader: &Loader) {
        self.begin_loading(loader);
        self.settled().await;
    }

    /// Has the backend opened by a task of its own, which nobody's leaving stops.
    fn begin_loading(&self, loader: &Loader) {
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
        let (model, loader) = (self.clone(), loader.clone());
        let found = {
            let mut found = self
                .slot
                .found
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *found)
        };
        tokio::spawn(async move {
            // whatever happens, the model must not be loading for ever
            let opened = AssertUnwindSafe(loader.open(&model.spec, found)).catch_unwind();
            let opened = opened
                .await
                .unwrap_or_else(|_| Err("loading it failed".to_owned()));
            let state = match opened {
                Ok(backend) => {
                    let source = backend.source();
                    tracing::info!(model = model.spec.name, source, "model is ready");
                    State::Ready(Arc::new(backend))
                }
                Err(reason) => {
                    tracing::warn!(model = model.spec.name, reason, "model is unavailable");
                    State::Unavailable(reason)
                }
            };
            model.slot.state.send_replace(state);
        });
    }

    /// The state once the backend is open or cannot be.
    async fn settled(&self) -> State {
        let mut state = self.slot.state.subscribe();
        let is_settled = |state: &State| !matches!(state, State::Loading | State::OnDemand);
        match state.wait_for(is_settled).await {
            Ok(state) => state.clone(),
            // the sender is in our own slot
            Err(_) => State::Loading,
        }
    }

    /// The backend, opened if need be.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] with the reason why there is none.
    pub async fn backend(&self, loader: &Loader) -> Result<Arc<Backend>, Error> {
        if let State::Ready(backend) = &*self.slot.state.borrow() {
            return Ok(Arc::clone(backend));
        }
        self.begin_loading(loader);
        let settled = tokio::time::timeout(PATIENCE, self.settled()).await;
        match settled.unwrap_or(State::Loading) {
            State::Ready(backend) => Ok(backend),
            State::Unavailable(reason) => Err(unavailable("model_unavailable", &reason)),
            State::Loading | State::OnDemand => {
                let mut error = unavailable("model_loading", "it is still loading");
                error.retry_after_ms = Some(5_000);
                Err(error)
            }
        }
    }
}

fn unavailable(code: &str, reason: &str) -> Error {
    let mut error = Error::new(
        ErrorKind::Overloaded,
        format!("the model is unavailable: {reason}"),
    );
    error.code = Some(code.to_owned());
    error
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

    /// Whether a model that should be loaded at start still is being loaded.
    pub fn is_loading(&self) -> bool {
        self.models().any(|model| {
            model.spec.preload && matches!(model.state(), State::Loading | State::OnDemand)
        })
    }

    /// Puts a model in the place of the one with its number.
    pub fn insert(&mut self, model: Model) {
        self.models.insert(model.spec.id, Arc::new(model));
    }
}

/// The set that is live now; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Current(Arc<ArcSwap<Live>>);

impl Current {
    /// The set as it is now, to keep for as long as a request takes.
    pub fn take(&self) -> Arc<Live> {
        self.0.load_full()
    }

    /// Puts another set in its place.
    pub fn swap(&self, live: Live) {
        self.0.store(Arc::new(live));
    }
}
