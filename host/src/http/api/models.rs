//! `GET /models`

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::http::AppState;
use crate::http::auth::{Caller, ModelsReader};
use crate::models::{Model, State as ModelState};
use crate::money::Price;

/// The models on offer.
#[derive(Debug, Serialize)]
pub struct List {
    models: Vec<Shown>,
    /// Why the configuration file is not what runs; for the operator alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_error: Option<String>,
}

/// A model as shown.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Name and version of the plugin, once it is loaded.
    pub plugin: Option<String>,
    /// `ready`, `loading`, `on_demand` or `unavailable`.
    pub status: &'static str,
    /// Why it is unavailable; for the operator alone, as it may name folders, and what is
    /// behind the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why its latest configuration is not what runs; for the operator alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Where a local model was loaded from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// SHA-256 of the component.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Tokens of prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_window: Option<u32>,
    /// US dollars per million tokens.
    pub price_per_million: Price,
}

impl From<&Model> for Shown {
    fn from(model: &Model) -> Self {
        let mut shown = Self {
            id: model.spec.id,
            name: model.spec.name.clone(),
            plugin: None,
            status: "ready",
            reason: None,
            problem: model.problem.clone(),
            source: None,
            digest: None,
            context_window: None,
            price_per_million: model.spec.price_per_million,
        };
        match model.state() {
            ModelState::OnDemand => shown.status = "on_demand",
            ModelState::Loading => shown.status = "loading",
            ModelState::Unavailable(reason) => {
                shown.status = "unavailable";
                shown.reason = Some(reason);
            }
            ModelState::Ready(backend) => {
                let info = backend.info();
                shown.plugin = Some(format!("{} {}", info.name, info.version));
                shown.source = backend.source();
                shown.digest = backend.digest().map(str::to_owned);
                shown.context_window = backend.context_window();
            }
        }
        shown
    }
}

/// `GET /models`: all for the operator, those it may use for a customer.
pub async fn list(
    ModelsReader(caller): ModelsReader,
    State(AppState {
        generator, reload, ..
    }): State<AppState>,
) -> Json<List> {
    let live = generator.live().load();
    let (key, configuration_error) = match caller {
        Caller::Admin => (None, reload.error()),
        Caller::Customer(key) => (Some(key), None),
    };
    let models = live
        .models()
        .filter(|model| key.as_ref().is_none_or(|key| key.may_use(model.spec.id)))
        .map(|model| {
            let mut shown = Shown::from(&**model);
            if key.is_some() {
                (shown.reason, shown.problem) = (None, None);
            }
            shown
        })
        .collect();
    Json(List {
        models,
        configuration_error,
    })
}
