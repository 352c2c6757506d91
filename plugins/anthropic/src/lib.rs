//! Models behind Anthropic's Messages API. See README.md for the settings.

mod answer;
mod body;
mod messages;

use plugin_sdk::http::{Answer, Api, raw_json};
use plugin_sdk::{Backend, Error, ErrorKind, ModelInfo, PluginInfo, Request, Settings};
use serde_json::Value;

use self::answer::Decoder;
use self::body::Body;

/// The version of the API that is spoken here.
const API_VERSION: &str = "2023-06-01";

struct Anthropic {
    api: Api,
    model_name: String,
}

impl Backend for Anthropic {
    type Completion = Answer<Decoder>;

    fn open(settings: &Settings) -> Result<Self, Error> {
        settings.only(Api::SETTINGS.into_iter().chain(["model_name"]))?;
        Ok(Self {
            api: Api::open(settings)?.header("anthropic-version", API_VERSION),
            model_name: settings.required("model_name")?.to_owned(),
        })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        let features = [
            "chat",
            "completion",
            "tools",
            "vision",
            "reasoning",
            "stream",
        ];
        Ok(PluginInfo {
            name: "anthropic".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: self.model_name.clone(),
                description: "a model behind Anthropic's Messages API".to_owned(),
                features: features.map(str::to_owned).into(),
                ..ModelInfo::default()
            }],
            ext: vec![],
        })
    }

    fn generate(&self, request: Request) -> Result<Self::Completion, Error> {
        let body = Body::new(&self.model_name, &request)?;
        let decoder = Decoder::new(&request);
        self.api.ask(&request, "/messages", &body, decoder)
    }
}

/// JSON of the caller's.
fn parsed(json: &str, param: &str) -> Result<Value, Error> {
    // its form is checked, so that this cannot fail
    Ok(serde_json::from_str(raw_json(json, param)?.get()).unwrap_or_default())
}

/// The API has no place for this.
fn unsupported(param: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, message).param(param)
}

/// This makes no sense.
fn invalid(param: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).param(param)
}

plugin_sdk::export!(Anthropic);
