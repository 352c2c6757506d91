//! The glue between the generated bindings and the traits of this crate.

mod convert;

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;

use crate::component::wit::exports::model::plugin::backend::{
    self as guest, Guest, GuestCompletion,
};
use crate::component::wit::model::plugin::config;
use crate::component::wit::model::plugin::schema;
use crate::{Backend, Completion, Error, ErrorKind, Settings};

/// The bindings, of the world that the features choose: a component that never
/// uses the network must not import it.
#[expect(missing_docs, reason = "generated")]
pub mod wit {
    #[cfg(not(feature = "http"))]
    wit_bindgen::generate!({
        path: "wit/0.1",
        world: "local-backend",
        pub_export_macro: true,
        export_macro_name: "export_component",
    });

    #[cfg(feature = "upstream")]
    wit_bindgen::generate!({
        path: "wit/0.1",
        world: "upstream-backend",
        pub_export_macro: true,
        export_macro_name: "export_component",
    });

    #[cfg(all(feature = "http", not(feature = "upstream")))]
    wit_bindgen::generate!({
        path: "wit/0.1",
        world: "http-backend",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_component",
    });
}

pub use wit::export_component;

/// What [`export!`](crate::export) exports for the backend `B`.
pub struct Glue<B>(PhantomData<B>);

/// A completion kept by the host as a resource. The host calls `next` on it one
/// call at a time.
pub struct Kept<C>(RefCell<C>);

impl<B: Backend<Completion: 'static> + 'static> Guest for Glue<B> {
    type Completion = Kept<B::Completion>;

    fn describe() -> Result<schema::PluginInfo, schema::Error> {
        // the operator reads this error, so it stays as it is
        Ok(opened::<B>()?.describe()?.into())
    }

    fn estimate(request: schema::Request) -> Result<schema::TokenEstimate, schema::Error> {
        Ok(open::<B>()?.estimate(&request.into())?.into())
    }

    fn generate(request: schema::Request) -> Result<guest::Completion, schema::Error> {
        let completion = open::<B>()?.generate(request.into())?;
        Ok(guest::Completion::new(Kept(RefCell::new(completion))))
    }
}

impl<C: Completion + 'static> GuestCompletion for Kept<C> {
    fn next(&self) -> Result<Vec<schema::Event>, schema::Error> {
        let events = self.0.borrow_mut().next()?;
        Ok(events.into_iter().map(Into::into).collect())
    }
}

fn settings() -> Settings {
    let value = |key: String| config::get(&key).map(|value| (key, value));
    config::keys().into_iter().filter_map(value).collect()
}

thread_local! {
    /// The backend, once it is open: the calls of a request have it in common.
    static OPENED: OnceCell<Rc<dyn Any>> = const { OnceCell::new() };
}

fn opened<B: Backend + 'static>() -> Result<Rc<B>, Error> {
    if let Some(backend) = OPENED.with(|opened| opened.get()?.clone().downcast().ok()) {
        return Ok(backend);
    }
    let backend = Rc::new(B::open(&settings())?);
    OPENED.with(|opened| opened.set(backend.clone()).ok());
    Ok(backend)
}

/// Opens the backend for a request: here a wrong setting is the operator's
/// fault, not the caller's.
fn open<B: Backend + 'static>() -> Result<Rc<B>, Error> {
    opened::<B>().map_err(|error| {
        Error::new(ErrorKind::Internal, "the model is not configured correctly").detail(error)
    })
}
