//! A plugin for tests: it misbehaves as the first line of its prompt tells it to, and
//! echoes any other prompt. The lines after `fetch` are headers, in which `\\r` and
//! `\\n` are written out. The setting `trap_at` names a function that shall trap. What
//! the host makes of each is in `host/src/models/component` and in `tests/it`.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use plugin_sdk::http::Post;
use plugin_sdk::{
    Backend, Completion, CountSource, Error, ErrorKind, Event, Finish, FinishReason, ModelInfo,
    PluginInfo, Prompt, Request, Settings, TokenEstimate, Usage, log,
};

struct Misbehave {
    api_url: String,
    trap_at: String,
}

/// What `next` does.
enum Answer {
    Say(String),
    SayForever,
    SayAndGiveUp,
    GiveUp,
    Nothing,
}

impl Backend for Misbehave {
    type Completion = Answer;

    fn open(settings: &Settings) -> Result<Self, Error> {
        let text = |name| settings.get(name).unwrap_or_default().to_owned();
        Ok(Self {
            api_url: text("api_url"),
            trap_at: text("trap_at"),
        })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        self.may_trap("describe");
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

    fn estimate(&self, _: &Request) -> Result<TokenEstimate, Error> {
        self.may_trap("estimate");
        Err(Error::new(ErrorKind::Unsupported, "no estimate"))
    }

    fn generate(&self, request: Request) -> Result<Answer, Error> {
        let Prompt::Text(prompt) = request.prompt else {
            return Err(Error::new(ErrorKind::Unsupported, "text only"));
        };
        if let Some(fetch) = prompt.strip_prefix("fetch") {
            return self.fetch(fetch);
        }
        if let Some(depth) = prompt.strip_prefix("dive ") {
            return Ok(Answer::Say(dive(depth.parse().unwrap_or(0)).to_string()));
        }
        if let Some(milliseconds) = prompt.strip_prefix("compute ") {
            let time = Duration::from_millis(milliseconds.parse().unwrap_or(0));
            let began = Instant::now();
            while began.elapsed() < time {}
            return Ok(Answer::Say(milliseconds.to_owned()));
        }
        if let Some(requests) = prompt.strip_prefix("hoard ") {
            return Ok(Answer::Say(
                hoard(requests.parse().unwrap_or(0)).to_string(),
            ));
        }
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
            "leak" => {
                black_box(vec![1_u8; 40 << 20].leak());
                return Ok(Answer::Say(count().to_string()));
            }
            "recurse" => return Ok(Answer::Say(recurse(0).to_string())),
            "exit" => std::process::exit(0),
            "endless stream" => return Ok(Answer::SayForever),
            "empty" => return Ok(Answer::Nothing),
            "give up" => return Ok(Answer::SayAndGiveUp),
            "log flood" => (0..100_000).for_each(|line| log::info(format!("line {line}"))),
            "log huge" => log::info("a".repeat(8 << 20)),
            "print flood" => (0..100_000).for_each(|line| println!("line {line}")),
            "shout" => return Err(Error::new(ErrorKind::Upstream, "a".repeat(1 << 20))),
            "flood upstream" => {
                for _ in 0..9_999 {
                    // whoever floods does not stop at a refusal
                    let _ = self.post(&self.api_url, &[], "{}");
                }
                return self.post(&self.api_url, &[], "{}");
            }
            "huge header" => {
                let huge = "a".repeat(1 << 20);
                return self.post(&self.api_url, &[("x-huge", &huge)], "{}");
            }
            "many headers" => {
                let many = vec![("x-one-of-many", "a"); 100_000];
                return self.post(&self.api_url, &many, "{}");
            }
            "huge body" => return self.post(&self.api_url, &[], &"a".repeat(2 << 20)),
            "peek" => return Ok(Answer::Say(peek())),
            "count" => return Ok(Answer::Say(count().to_string())),
            _ => {}
        }
        Ok(Answer::Say(prompt))
    }
}

impl Misbehave {
    fn may_trap(&self, function: &str) {
        assert!(self.trap_at != function, "told to trap");
    }

    /// Asks for ` URL`, or `api_url` without one, with headers in the lines below.
    fn fetch(&self, what: &str) -> Result<Answer, Error> {
        let mut lines = what.lines();
        let url = match lines.next().map_or("", str::trim) {
            "" => &self.api_url,
            url => url,
        };
        let unescaped = |text: &str| text.replace("\\r", "\r").replace("\\n", "\n");
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (unescaped(name), unescaped(value)))
            .collect();
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.post(url, &headers, "{}")
    }

    fn post(&self, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer, Error> {
        let response = Post {
            url,
            headers,
            json: body.as_bytes(),
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
            Self::SayAndGiveUp => {
                *self = Self::GiveUp;
                Ok(vec![Event::Text("and ".to_owned())])
            }
            Self::GiveUp => Err(Error::new(ErrorKind::Cancelled, "I have given up")),
            Self::Nothing => Ok(vec![]),
        }
    }
}

#[expect(unconditional_recursion, reason = "told to")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(frame[7] + 1) + black_box(frame[9])
}

/// Recursion that ends, with little in each frame.
fn dive(depth: u64) -> u64 {
    match black_box(depth) {
        0 => 0,
        depth => 1 + dive(depth - 1),
    }
}

/// Makes requests that it keeps and never sends, each with all that the host takes. How many
/// bytes that was.
#[cfg(target_family = "wasm")]
fn hoard(requests: usize) -> usize {
    use plugin_sdk::component::wit::wasi::http::types::{
        Fields, Method, OutgoingBody, OutgoingRequest,
    };
    let long = "a".repeat(1 << 20);
    let mut taken = 0;
    let fill = |taken: &mut usize| {
        // somewhat less than would make it trap
        let (fields, value) = (Fields::new(), &long.as_bytes()[..240 << 10]);
        fields.append("x-kept", value).expect("it fits");
        *taken += value.len();
        fields
    };
    for _ in 0..requests {
        let request = OutgoingRequest::new(fill(&mut taken));
        for is_taken in [
            request.set_method(&Method::Other(long.clone())),
            request.set_authority(Some(&long)),
        ] {
            taken += is_taken.map_or(0, |()| long.len());
        }
        let body = request.body().expect("its first body");
        let stream = body.write().expect("its first stream");
        while let Ok(room @ 1..) = stream.check_write() {
            stream.write_zeroes(room).expect("there is room");
            taken += usize::try_from(room).expect("32 bits");
        }
        drop(stream);
        OutgoingBody::finish(body, Some(fill(&mut taken))).expect("it has no length");
        std::mem::forget(request);
    }
    taken
}

#[cfg(not(target_family = "wasm"))]
fn hoard(_: usize) -> usize {
    0
}

/// How often this instance was asked, this time included.
fn count() -> u32 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    ASKED.fetch_add(1, Ordering::Relaxed) + 1
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
