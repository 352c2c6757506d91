//! What a model backend implements, whether it is compiled into the host or
//! loaded as a WebAssembly component.
//!
//! A plugin implements [`Backend`] and its [`Completion`]. A native plugin is
//! then named in the host's list of native plugins; a component calls
//! [`export!`] once and is built for `wasm32-wasip2`. Nothing else differs.
//!
//! The types mirror `wit/0.1/plugin.wit`, which is the contract.

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod component;
#[cfg(feature = "http")]
pub mod http;
pub mod log;
mod refuse;
mod schema;
mod settings;

pub use schema::{
    Blob, CountSource, Error, ErrorKind, Event, Extension, Finish, FinishReason, Message,
    ModelInfo, Params, Part, PluginInfo, Prompt, Request, Role, TokenEstimate, Tool, ToolCall,
    Usage, guess_tokens,
};
pub use settings::Settings;

/// A model, or a family of models behind one API.
pub trait Backend: Sized {
    /// One answer in the making.
    type Completion: Completion;

    /// Opens the backend with the operator's settings. A native plugin loads
    /// its weights here and may take long. A component is opened once in each
    /// instance, as a rule for every request (`requests_per_instance` has an
    /// instance answer several), and must be quick.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when a setting is missing or wrong,
    /// [`ErrorKind::Internal`] when the model cannot be loaded. The message is
    /// shown to the operator as the reason why the model is unavailable.
    fn open(settings: &Settings) -> Result<Self, Error>;

    /// What this backend is. Must not use the network.
    ///
    /// # Errors
    /// Any error keeps the plugin from being loaded.
    fn describe(&self) -> Result<PluginInfo, Error>;

    /// How many tokens the prompt will be; cheap and local.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] lets the host estimate by the prompt's length.
    fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        let _ = request;
        Err(Error::new(
            ErrorKind::Unsupported,
            "this plugin does not estimate",
        ))
    }

    /// Accepts a request. A failure here has sent nothing upstream.
    ///
    /// # Errors
    /// See [`ErrorKind`] for what becomes of each kind.
    fn generate(&self, request: Request) -> Result<Self::Completion, Error>;
}

/// One answer in the making. Dropping it cancels it.
pub trait Completion {
    /// Blocks until there is something to report; never returns an empty list.
    /// [`Event::Finish`] is the last event, after it or an error `next` is not
    /// called again.
    ///
    /// # Errors
    /// See [`ErrorKind`] for what becomes of each kind.
    fn next(&mut self) -> Result<Vec<Event>, Error>;

    /// What the host calls, from another thread, once nobody wants the answer any
    /// more: a `next` under way is to return soon, whatever it returns. For a native
    /// plugin that may block there for long, since it is dropped only after that; a
    /// component is dropped in the middle of it, and is not asked.
    fn canceller(&self) -> Option<Box<dyn FnOnce() + Send>> {
        None
    }
}

/// Makes a component of a [`Backend`]. Call it once, in a crate of type
/// `cdylib`. Natively it does nothing, so that the crate's own unit tests build.
///
/// ```
/// # use plugin_sdk::{Backend, Completion, Error, Event, PluginInfo, Request, Settings};
/// struct Silent;
/// # impl Completion for Silent {
/// #     fn next(&mut self) -> Result<Vec<Event>, Error> { Ok(vec![]) }
/// # }
/// impl Backend for Silent {
///     // …
/// #     type Completion = Silent;
/// #     fn open(_: &Settings) -> Result<Self, Error> { Ok(Silent) }
/// #     fn describe(&self) -> Result<PluginInfo, Error> { Ok(PluginInfo::default()) }
/// #     fn generate(&self, _: Request) -> Result<Silent, Error> { Ok(Silent) }
/// }
///
/// plugin_sdk::export!(Silent);
/// ```
#[cfg(not(target_family = "wasm"))]
#[macro_export]
macro_rules! export {
    ($backend:ty) => {
        const _: () = {
            const fn is_backend<B: $crate::Backend>() {}
            is_backend::<$backend>();
        };
    };
}

/// Makes a component of a [`Backend`]. Call it once, in a crate of type
/// `cdylib`.
#[cfg(target_family = "wasm")]
#[macro_export]
macro_rules! export {
    ($backend:ty) => {
        type ExportedBackend = $crate::component::Glue<$backend>;
        $crate::component::export_component!(ExportedBackend with_types_in $crate::component::wit);
    };
}

/// The README's plugins must compile.
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;
