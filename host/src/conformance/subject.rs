//! The model under test, and how it is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_sdk::{
    Error, ErrorKind, Event, Extension, Finish, Message, Params, PluginInfo, Prompt, Request, Role,
    TokenEstimate,
};

use crate::models::{Backend, Completion};

use super::upstream::Upstream;

/// What a request gets, unless its check is about time.
const DEADLINE: Duration = Duration::from_secs(30);
/// How much later than its deadline a request may end, on a busy machine.
const GRACE: Duration = Duration::from_secs(2);

/// A model, open, and the upstream that it may use.
#[derive(Debug)]
pub struct Subject {
    /// The model's backend.
    pub backend: Arc<Backend>,
    /// Its upstream.
    pub upstream: Upstream,
    /// The kinds of prompts that it says it takes.
    pub kinds: Vec<Kind>,
    /// How it works, by what it did with a first request.
    pub way: Way,
    /// Whether it refuses a temperature, as an adapter to an API that has none does.
    pub is_untempered: bool,
}

/// How a plugin comes by its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It asks an upstream, in a format that the kit knows.
    Adapter,
    /// It asks an upstream, in another format.
    UnknownFormat,
    /// It asks nobody.
    Local,
}

/// A kind of prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text to continue.
    Text,
    /// Messages to answer.
    Chat,
}

/// A way of asking: what prompt, and whether the answer is read as it is produced.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The kind of prompt.
    pub kind: Kind,
    /// The hint `stream` is given.
    pub streamed: bool,
}

impl std::fmt::Display for Manner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.kind {
            Kind::Text => "text",
            Kind::Chat => "chat",
        })?;
        f.write_str(if self.streamed {
            ", streamed"
        } else {
            ", whole"
        })
    }
}

/// How a request went.
#[derive(Debug)]
pub struct Answer {
    /// All events, in order.
    pub events: Vec<Event>,
    /// The end.
    pub end: Result<Finish, Error>,
    /// When the first text came.
    pub first_text: Option<Duration>,
    /// When the request was sent.
    began: Instant,
    /// When it ended.
    pub took: Duration,
}

impl Answer {
    /// The text of all events.
    pub fn text(&self) -> String {
        self.texts().collect()
    }

    /// Its pieces.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.events.iter().filter_map(|event| match event {
            Event::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The error, if it is one of a request that the model does not take.
    pub fn refusal(&self) -> Option<&Error> {
        let refused = [ErrorKind::Unsupported, ErrorKind::InvalidRequest];
        let error = self.end.as_ref().err()?;
        refused.contains(&error.kind).then_some(error)
    }

    /// An answer to a request that is sent now.
    pub fn begun() -> Self {
        Self {
            events: Vec::new(),
            end: Err(Error::new(ErrorKind::Internal, "it has not ended")),
            first_text: None,
            began: Instant::now(),
            took: Duration::ZERO,
        }
    }

    /// Takes what a completion reports until its end.
    ///
    /// # Errors
    /// The completion's own.
    pub async fn follow(&mut self, completion: &mut Completion) -> Result<Finish, Error> {
        loop {
            if let Some(finish) = self.step(completion).await? {
                return Ok(finish);
            }
        }
    }

    /// Takes what a completion reports next; the end, if that was it.
    ///
    /// # Errors
    /// The completion's own.
    pub async fn step(&mut self, completion: &mut Completion) -> Result<Option<Finish>, Error> {
        let events = completion.next().await?;
        if events.is_empty() {
            return Err(Error::new(
                ErrorKind::Upstream,
                "the plugin reported no event",
            ));
        }
        let mut end = None;
        for event in &events {
            match event {
                Event::Text(text) if !text.is_empty() => {
                    self.first_text.get_or_insert_with(|| self.began.elapsed());
                }
                Event::Finish(finish) => end = Some(finish.clone()),
                _ => {}
            }
        }
        self.events.extend(events);
        Ok(end)
    }

    /// How it went, in a line for people.
    pub fn shown(&self) -> String {
        let text = shortened(&self.text());
        match &self.end {
            Ok(finish) => format!("the text {text} and finish {:?}", finish.reason),
            Err(error) => {
                let before = if text == "\"\"" {
                    String::new()
                } else {
                    format!("the text {text} and then ")
                };
                format!("{before}the error {:?}: {error}", error.kind)
            }
        }
    }
}

/// A text in quotes, of which only the beginning is shown when it is long.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 120;
    let more = if text.chars().nth(MOST).is_some() {
        "…"
    } else {
        ""
    };
    format!("{:?}{more}", text.chars().take(MOST).collect::<String>())
}

impl Subject {
    /// A request in this manner; at temperature 0, where the model takes one.
    pub fn request(&self, manner: Manner, prompt: &str) -> Request {
        let prompt = match manner.kind {
            Kind::Text => Prompt::Text(prompt.to_owned()),
            Kind::Chat => Prompt::Chat(vec![Message::text(Role::User, prompt)]),
        };
        let stream = Extension::new("stream", "true");
        Request {
            request_id: "conformance".to_owned(),
            model: "conformance".to_owned(),
            prompt,
            params: Params {
                max_tokens: Some(64),
                temperature: (!self.is_untempered).then_some(0.0),
                ..Params::default()
            },
            tools: Vec::new(),
            deadline_ms: u32::try_from(DEADLINE.as_millis()).unwrap_or(u32::MAX),
            ext: manner.streamed.then_some(stream).into_iter().collect(),
        }
    }

    /// What the plugin says it is.
    pub fn info(&self) -> &PluginInfo {
        self.backend.info()
    }

    /// Whether its first model has this among its features.
    pub fn promises(&self, feature: &str) -> bool {
        promises(self.info(), feature)
    }

    /// All manners in which the model can be asked.
    pub fn manners(&self) -> impl Iterator<Item = Manner> {
        self.kinds
            .iter()
            .flat_map(|&kind| [false, true].map(|streamed| Manner { kind, streamed }))
    }

    /// How many tokens a prompt will be.
    pub async fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        let mut session = self.backend.session(0, DEADLINE).await?;
        session.estimate(request).await
    }

    /// Asks until the end or a failure. At the deadline the backend must end it,
    /// and gets a little longer to do so.
    pub async fn ask(&self, request: Request) -> Answer {
        let deadline = Duration::from_millis(request.deadline_ms.into());
        let mut answer = Answer::begun();
        let asking = async {
            let mut session = self.backend.session(0, deadline).await?;
            // as before any request that is served, whatever comes of it
            let _ = session.estimate(&request).await;
            let mut completion = session.generate(request).await?;
            let finish = answer.follow(&mut completion).await?;
            completion.end().await;
            Ok(finish)
        };
        let end = tokio::time::timeout(deadline + GRACE, asking).await;
        let late = || Error::new(ErrorKind::Internal, "it goes on after its deadline");
        answer.end = end.unwrap_or_else(|_| Err(late()));
        answer.took = answer.began.elapsed();
        answer
    }
}

/// Whether the plugin's first model has this among its features.
pub fn promises(info: &PluginInfo, feature: &str) -> bool {
    let model = info.models.first();
    model.is_some_and(|model| model.features.iter().any(|have| have == feature))
}
