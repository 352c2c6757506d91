//! A plugin for tests that needs no network: it echoes its prompt, and traps at the
//! text that its setting `trap_at` names.

use plugin_sdk::{
    Backend, Completion, Error, ErrorKind, Event, Finish, FinishReason, ModelInfo, PluginInfo,
    Prompt, Request, Settings, Usage,
};

/// The plugin.
pub struct Offline {
    trap_at: Option<String>,
}

/// An echo in the making.
pub struct Answer(String);

impl Backend for Offline {
    type Completion = Answer;

    fn open(settings: &Settings) -> Result<Self, Error> {
        let trap_at = settings.get("trap_at").map(str::to_owned);
        Ok(Self { trap_at })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        Ok(PluginInfo {
            name: "offline".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: "offline".to_owned(),
                ..ModelInfo::default()
            }],
            ext: vec![],
        })
    }

    fn generate(&self, request: Request) -> Result<Answer, Error> {
        let Prompt::Text(text) = request.prompt else {
            return Err(Error::new(ErrorKind::Unsupported, "text only"));
        };
        assert!(self.trap_at.as_ref() != Some(&text), "told to trap");
        Ok(Answer(text))
    }
}

impl Completion for Answer {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        let finish = Finish {
            reason: FinishReason::Stop,
            usage: Usage::default(),
            ext: vec![],
        };
        let text = std::mem::take(&mut self.0);
        Ok(vec![Event::Text(text), Event::Finish(finish)])
    }
}

plugin_sdk::export!(Offline);
