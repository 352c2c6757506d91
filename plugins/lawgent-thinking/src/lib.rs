//! lawgent-thinking and any other model behind an API in the format of OpenAI's
//! `/v1/completions`. See README.md for its settings.

use openai_format::{Completion, Decoder, Options};
use plugin_sdk::http::{Answer, Api};
use plugin_sdk::{
    Backend, CountSource, Error, ModelInfo, PluginInfo, Request, Settings, TokenEstimate,
};

/// The adapter.
pub struct Completions {
    api: Api,
    model_name: String,
}

impl Backend for Completions {
    type Completion = Answer<Decoder>;

    fn open(settings: &Settings) -> Result<Self, Error> {
        settings.only(Api::SETTINGS.into_iter().chain(["model_name"]))?;
        Ok(Self {
            api: Api::open(settings)?,
            model_name: settings.required("model_name")?.to_owned(),
        })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        Ok(PluginInfo {
            name: "lawgent-thinking".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: self.model_name.clone(),
                description: "a model behind an OpenAI-style completions API".to_owned(),
                features: ["completion", "seed", "stream"].map(str::to_owned).into(),
                ..ModelInfo::default()
            }],
            ext: vec![],
        })
    }

    fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        // refused here already, before it counts against a limit
        self.body(request)?;
        Ok(TokenEstimate {
            prompt_tokens: request.guess_tokens(),
            source: CountSource::Estimated,
        })
    }

    fn generate(&self, request: Request) -> Result<Self::Completion, Error> {
        let decoder = Decoder::new(&request);
        self.api.ask(&request, "", &self.body(&request)?, decoder)
    }
}

impl Completions {
    fn body<'a>(&'a self, request: &'a Request) -> Result<Completion<'a>, Error> {
        Completion::new(&self.model_name, request, Options::new(request))
    }
}

plugin_sdk::export!(Completions);
