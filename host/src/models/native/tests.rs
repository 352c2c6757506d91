//! The driver of native plugins, with plugins that misbehave.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use plugin_sdk::{CountSource, Finish, FinishReason, Params, Prompt, Usage};

use super::*;

/// Does what the prompt says.
struct Fake {
    /// Opened by the test: "wait" waits for it.
    gate: Gate,
    /// The prompts that were started.
    started: Mutex<Vec<String>>,
}

/// Shut until it is true.
type Gate = Arc<(Mutex<bool>, Condvar)>;

/// The gates of all fakes, by name.
static GATES: Mutex<Vec<(String, Gate)>> = Mutex::new(Vec::new());

impl Backend for Fake {
    type Completion = FakeCompletion;

    fn open(settings: &Settings) -> Result<Self, Error> {
        let name = settings.get("gate").unwrap_or_default().to_owned();
        let gate = Gate::default();
        GATES.lock().unwrap().push((name, Arc::clone(&gate)));
        let started = Mutex::default();
        Ok(Self { gate, started })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        Ok(PluginInfo::default())
    }

    /// Panics, or tells the number of requests started so far.
    fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        assert_ne!(request.prompt, Prompt::Text("panic".to_owned()));
        let prompt_tokens = self.started.lock().unwrap().len().try_into().unwrap();
        let source = CountSource::Exact;
        Ok(TokenEstimate {
            prompt_tokens,
            source,
        })
    }

    fn generate(&self, request: Request) -> Result<FakeCompletion, Error> {
        let Prompt::Text(text) = request.prompt else {
            panic!("a text")
        };
        self.started.lock().unwrap().push(text.clone());
        match text.as_str() {
            "refuse" => Err(Error::new(ErrorKind::ContextLength, "too long")),
            "panic" => panic!("told to"),
            "wait" => {
                let (open, changed) = &*self.gate;
                drop(changed.wait_while(open.lock().unwrap(), |open| !*open));
                Ok(FakeCompletion { text, step: 0 })
            }
            _ => Ok(FakeCompletion { text, step: 0 }),
        }
    }
}

struct FakeCompletion {
    text: String,
    step: u32,
}

impl plugin_sdk::Completion for FakeCompletion {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        self.step += 1;
        match (self.text.as_str(), self.step) {
            ("panic later", 2) => panic!("told to"),
            ("for ever", _) | (_, 1) => Ok(vec![Event::Text(self.text.clone())]),
            _ => {
                let (reason, usage) = (FinishReason::Stop, Usage::default());
                Ok(vec![Event::Finish(Finish {
                    reason,
                    usage,
                    ext: Vec::new(),
                })])
            }
        }
    }
}

fn request(text: &str) -> Request {
    Request {
        request_id: "test".to_owned(),
        model: "fake".to_owned(),
        prompt: Prompt::Text(text.to_owned()),
        params: Params::default(),
        tools: Vec::new(),
        deadline_ms: 60_000,
        ext: Vec::new(),
    }
}

async fn fake(gate: &str, parallel: usize, queue: usize) -> Native {
    let settings = [("gate".to_owned(), gate.to_owned())].into_iter().collect();
    Native::open_as::<Fake>("fake", settings, Options { parallel, queue })
        .await
        .unwrap()
}

fn open(gate: &str) {
    let gates = GATES.lock().unwrap();
    let (_, found) = gates.iter().find(|(name, _)| name == gate).unwrap();
    *found.0.lock().unwrap() = true;
    found.1.notify_all();
}

#[tokio::test]
async fn a_completion_reports_to_its_end() {
    let native = fake("", 1, 1).await;
    let mut completion = native.generate(request("hello")).await.unwrap();
    assert_eq!(
        completion.next().await,
        Ok(vec![Event::Text("hello".to_owned())])
    );
    assert!(matches!(
        completion.next().await.unwrap()[..],
        [Event::Finish(_)]
    ));
    assert!(completion.next().await.is_err());
}

#[tokio::test]
async fn a_refusal_is_the_plugins_own() {
    let error = fake("", 1, 1)
        .await
        .generate(request("refuse"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextLength);
}

#[tokio::test]
async fn a_panic_fails_one_request_and_no_other() {
    let native = fake("", 1, 4).await;
    let error = native.generate(request("panic")).await.unwrap_err();
    assert_eq!(error.code.as_deref(), Some("plugin_failed"));
    let mut later = native.generate(request("panic later")).await.unwrap();
    later.next().await.unwrap();
    assert_eq!(
        later.next().await.unwrap_err().code.as_deref(),
        Some("plugin_failed")
    );
    native
        .generate(request("hello"))
        .await
        .unwrap()
        .next()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_dropped_completion_frees_its_thread() {
    let native = fake("", 1, 1).await;
    let mut endless = native.generate(request("for ever")).await.unwrap();
    endless.next().await.unwrap();
    drop(endless);
    // the one thread takes the next request
    native
        .generate(request("hello"))
        .await
        .unwrap()
        .next()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_try_again() {
    let native = Arc::new(fake("full", 1, 1).await);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let native = Arc::clone(&native);
            tokio::spawn(async move { native.generate(request("wait")).await.map(|_| ()) })
        })
        .collect();
    // both are polled once, which puts them in; until a thread has taken the first
    // a third may find a place, and has to leave it again
    tokio::task::yield_now().await;
    let error = loop {
        let third = native.generate(request("wait"));
        match tokio::time::timeout(Duration::from_millis(50), third).await {
            Ok(Err(error)) => break error,
            Ok(Ok(_)) => panic!("it cannot be accepted while the gate is shut"),
            Err(_) => {}
        }
    };
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(error.retry_after_ms.is_some());
    open("full");
    for request in waiting {
        request.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_request_whose_client_left_the_queue_is_never_started() {
    let native = fake("left", 1, 1).await;
    let mut first = std::pin::pin!(native.generate(request("wait")));
    {
        let mut left = std::pin::pin!(native.generate(request("left")));
        // polled once each, in this order, which puts them in
        tokio::select! {
            biased;
            _ = &mut first => panic!("the gate is shut"),
            _ = &mut left => panic!("the only thread waits at the gate"),
            () = std::future::ready(()) => {}
        }
    }
    open("left");
    first.await.unwrap();
    // the place of the one that left is free, and the thread passes it over
    native.generate(request("hello")).await.unwrap();
    let started = native.estimate(&request("")).await.unwrap().prompt_tokens;
    assert_eq!(started, 2);
}

#[tokio::test]
async fn a_panic_while_estimating_is_an_error() {
    let native = fake("", 1, 1).await;
    let error = native.estimate(&request("panic")).await.unwrap_err();
    assert_eq!(error.code.as_deref(), Some("plugin_failed"));
}
