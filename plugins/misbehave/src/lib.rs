//! A plugin for tests: it misbehaves as its prompt tells it to, and echoes any
//! other prompt. What the host makes of each is in `host/src/models/component`
//! and in `tests/it`.

use std::hint::black_box;
use std::time::Duration;

use plugin_sdk::http::Post;
use plugin_sdk::{
    Backend, Completion, CountSource, Error, ErrorKind, Event, Finish, FinishReason, ModelInfo,
    PluginInfo, Prompt, Request, Settings, Usage, log,
};

struct Misbehave {
    api_url: String,
}

/// What `next` does.
enum Answer {
    Say(String),
    SayForever,
    Nothing,
}

impl Backend for Misbehave {
    type Completion = Answer;

    fn open(settings: &Settings) -> Result<Self, Error> {
        let api_url = settings.get("api_url").unwrap_or_default().to_owned();
        Ok(Self { api_url })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        Ok(PluginInfo {
            name: "misbehave".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: "misbehave".to_owned(),
                description: "for tests only".to_owned(),
                features: vec!["completion".to_owned()],
                ..ModelInfo::default()
            }],
            ext: vec![],
        })
    }

    fn generate(&self, request: Request) -> Result<Answer, Error> {
        let Prompt::Text(prompt) = request.prompt else {
            return Err(Error::new(ErrorKind::Unsupported, "text only"));
        };
        match prompt.as_str() {
            "loop" => loop {
                black_box(());
            },
            // waits in the host, where no epoch reaches it
            "sleep" => std::thread::sleep(Duration::from_secs(3600)),
            "trap" => panic!("told to trap"),
            "allocate" => loop {
                black_box(vec![1_u8; 1 << 20].leak());
            },
            "recurse" => return Ok(Answer::Say(recurse(0).to_string())),
            "exit" => std::process::exit(0),
            "endless stream" => return Ok(Answer::SayForever),
            "empty" => return Ok(Answer::Nothing),
            "log flood" => (0..100_000).for_each(|line| log::info(format!("line {line}"))),
            "print flood" => (0..100_000).for_each(|line| println!("line {line}")),
            "shout" => return Err(Error::new(ErrorKind::Upstream, "a".repeat(1 << 20))),
            "forbidden" => return self.post("https://forbidden.example/", &[]),
            "smuggle" => return self.post(&self.api_url, &[("authorization", "Bearer mine")]),
            "fetch" => return self.post(&self.api_url, &[]),
            "peek" => return Ok(Answer::Say(peek())),
            _ => {}
        }
        Ok(Answer::Say(prompt))
    }
}

impl Misbehave {
    fn post(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, Error> {
        let response = Post {
            url,
            headers,
            json: b"{}",
            timeout: Duration::from_secs(3600),
            response_limit: usize::MAX,
        }
        .send()?;
        let names: Vec<&str> = response
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let body = String::from_utf8_lossy(&response.body);
        Ok(Answer::Say(format!("{} {names:?} {body}", response.status)))
    }
}

impl Completion for Answer {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Say(text) => {
                // a token a word, so that tests know the usage
                let tokens = u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
                let usage = Usage {
                    prompt_tokens: tokens,
                    completion_tokens: tokens,
                    source: CountSource::Exact,
                    ..Usage::default()
                };
                let finish = Finish {
                    reason: FinishReason::Stop,
                    usage,
                    ext: vec![],
                };
                Ok(vec![Event::Text(text), Event::Finish(finish)])
            }
            Self::SayForever => {
                *self = Self::SayForever;
                Ok(vec![Event::Text("and ".to_owned())])
            }
            Self::Nothing => Ok(vec![]),
        }
    }
}

#[expect(unconditional_recursion, reason = "told to")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(frame[7] + 1) + black_box(frame[9])
}

/// What there is to see of the machine; a plugin must see nothing.
fn peek() -> String {
    let variables = std::env::vars().count();
    let arguments = std::env::args().count();
    let files = std::fs::read_dir("/").map_or(0, Iterator::count)
        + std::fs::read_dir(".").map_or(0, Iterator::count);
    format!("{variables} variables {arguments} arguments {files} files")
}

plugin_sdk::export!(Misbehave);
