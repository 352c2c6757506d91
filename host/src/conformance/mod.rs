//! The conformance kit: whether a plugin keeps to the contract, found out by the
//! host's own code against an upstream that plays a script.
//!
//! - `subject`: the model under test, and how it is asked
//! - `upstream`, `dialect`: the API that an adapter talks to, in its format
//! - `checks`: what is checked, a table

mod checks;
mod dialect;
mod subject;
mod upstream;

use std::io;

use plugin_sdk::PluginInfo;

use crate::config;
use crate::models::{Loader, Model};

use subject::{Kind, Manner, Subject, Way};
use upstream::{Pieces, Reply, Upstream};

pub use checks::{CHECKS, Check};

/// The operator's key, which no plugin may ever see.
const SECRET: &str = "sk-conformance-0123456789";

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no scripted upstream.
    #[error("cannot listen on this machine: {0}")]
    Listen(#[from] io::Error),
    /// The model cannot be opened.
    #[error("{0}")]
    Open(String),
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plugin does what it must; with what was measured, if anything was.
    Passed(Option<String>),
    /// What was expected, and what came instead.
    Failed(String),
    /// It does not concern this plugin, and why.
    Skipped(&'static str),
}

/// A plugin under test.
#[derive(Debug)]
pub struct Kit(Subject);

impl Kit {
    /// Opens a model as the server does. Its `api_url` and `api_key` become those
    /// of the kit's own upstream.
    ///
    /// # Errors
    /// When there is nothing to check.
    pub async fn open(mut spec: config::Model, loader: &Loader) -> Result<Self, Error> {
        let upstream = Upstream::start().await?;
        if spec.is_component() {
            spec.api_url = Some(upstream.url());
            spec.api_key = Some(SECRET.into());
            spec.model_name
                .get_or_insert_with(|| "conformance".to_owned());
        }
        let backend = Model::new(spec).load(loader).await.map_err(Error::Open)?;
        let kinds: Vec<_> = [(Kind::Chat, "chat"), (Kind::Text, "completion")]
            .into_iter()
            .filter(|(_, feature)| subject::promises(backend.info(), feature))
            .map(|(kind, _)| kind)
            .collect();
        let kinds = if kinds.is_empty() {
            vec![Kind::Text]
        } else {
            kinds
        };
        let mut subject = Subject {
            backend,
            upstream,
            kinds,
            way: Way::Local,
            is_untempered: false,
        };
        try_out(&mut subject).await;
        Ok(Self(subject))
    }

    /// What the plugin says it is.
    pub fn info(&self) -> &PluginInfo {
        self.0.info()
    }

    /// Makes one check.
    pub async fn check(&self, check: &Check) -> Outcome {
        checks::make(check, &self.0).await
    }
}

/// Finds out by a first request whether the plugin refuses the temperature that each would
/// have, whether it asks an upstream, and in what format.
async fn try_out(subject: &mut Subject) {
    subject.upstream.play(Reply::Echo, Pieces::One, None);
    for kind in subject.kinds.clone() {
        let streamed = false;
        let manner = Manner { kind, streamed };
        let answer = subject.ask(subject.request(manner, "Hello")).await;
        let refused = answer.refusal().and_then(|error| error.param.as_deref());
        if refused == Some("temperature") {
            subject.is_untempered = true;
            subject.ask(subject.request(manner, "Hello")).await;
        }
    }
    let seen = subject.upstream.seen();
    subject.way = if seen.is_empty() {
        Way::Local
    } else if seen.iter().all(|seen| seen.dialect.is_some()) {
        Way::Adapter
    } else {
        Way::UnknownFormat
    };
}
