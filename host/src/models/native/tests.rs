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
                wait(&self.gate);
                Ok(FakeCompletion::new(text))
            }
            _ => Ok(FakeCompletion::new(text)),
        }
    }
}

struct FakeCompletion {
    text: String,
    step: u32,
    /// Opened when nobody wants it: "block" waits for it.
    cancelled: Gate,
}

impl FakeCompletion {
    fn new(text: String) -> Self {
        let cancelled = Gate::default();
        Self {
            text,
            step: 0,
            cancelled,
        }
    }
}

impl plugin_sdk::Completion for FakeCompletion {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        self.step += 1;
        match (self.text.as_str(), self.step) {
            ("panic later", 2) => panic!("told to"),
            ("block", _) => {
                wait(&self.cancelled);
                Err(Error::new(ErrorKind::Cancelled, "nobody waits"))
            }
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

    fn canceller(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let cancelled = Arc::clone(&self.cancelled);
        Some(Box::new(move || set_open(&cancelled)))
    }
}

fn wait(gate: &Gate) {
    let (open, changed) = &**gate;
    drop(changed.wait_while(open.lock().unwrap(), |open| !*open));
}

/// The key that all come with, where it does not matter.
const KEY: i64 = 1;

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
    set_open(found);
}

fn set_open(gate: &Gate) {
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
}

#[tokio::test]
async fn a_completion_reports_to_its_end() {
    let native = fake("", 1, 1).await;
    let mut completion = native.generate(KEY, request("hello")).await.unwrap();
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
        .generate(KEY, request("refuse"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextLength);
}

#[tokio::test]
async fn a_panic_fails_one_request_and_no_other() {
    let native = fake("", 1, 4).await;
    let error = native.generate(KEY, request("panic")).await.unwrap_err();
    assert_eq!(error.code.as_deref(), Some("plugin_failed"));
    let mut later = native.generate(KEY, request("panic later")).await.unwrap();
    later.next().await.unwrap();
    assert_eq!(
        later.next().await.unwrap_err().code.as_deref(),
        Some("plugin_failed")
    );
    answers(&native).await;
}

/// A thread takes the next request.
async fn answers(native: &Native) {
    let mut completion = native.generate(KEY, request("hello")).await.unwrap();
    completion.next().await.unwrap();
}

#[tokio::test]
async fn a_dropped_completion_frees_its_thread() {
    let native = fake("", 1, 1).await;
    let mut endless = native.generate(KEY, request("for ever")).await.unwrap();
    endless.next().await.unwrap();
    drop(endless);
    // the one thread takes the next request
    answers(&native).await;
}

#[tokio::test]
async fn a_completion_that_blocks_learns_that_nobody_wants_it() {
    let native = fake("", 1, 1).await;
    drop(native.generate(KEY, request("block")).await.unwrap());
    {
        // left before it is told that it was accepted
        let mut left = std::pin::pin!(native.generate(KEY, request("block")));
        tokio::select! {
            biased;
            _ = &mut left => {}
            () = std::future::ready(()) => {}
        }
        while native.estimate(&request("")).await.unwrap().prompt_tokens < 2 {}
    }
    // the one thread takes the next request
    answers(&native).await;
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_try_again() {
    let native = Arc::new(fake("full", 1, 1).await);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let native = Arc::clone(&native);
            tokio::spawn(async move { native.generate(KEY, request("wait")).await.map(|_| ()) })
        })
        .collect();
    // both are polled once, which puts them in; until a thread has taken the first
    // a third may find a place, and has to leave it again
    tokio::task::yield_now().await;
    let error = loop {
        let third = native.generate(KEY, request("wait"));
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
    let mut first = std::pin::pin!(native.generate(KEY, request("wait")));
    {
        let mut left = std::pin::pin!(native.generate(KEY, request("left")));
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
    native.generate(KEY, request("hello")).await.unwrap();
    let started = native.estimate(&request("")).await.unwrap().prompt_tokens;
    assert_eq!(started, 2);
}

#[tokio::test]
async fn a_panic_while_estimating_is_an_error() {
    let native = fake("", 1, 1).await;
    let error = native.estimate(&request("panic")).await.unwrap_err();
    assert_eq!(error.code.as_deref(), Some("plugin_failed"));
}

/// A job of an owner, with a number.
#[derive(Debug, PartialEq, Eq)]
struct Numbered(i64, u32);

impl Waiting for Numbered {
    fn is_abandoned(&self) -> bool {
        false
    }

    fn owner(&self) -> i64 {
        self.0
    }
}

#[test]
fn owners_take_turns_and_each_keeps_its_order() {
    let queue = Queue::new(1, 10);
    for (owner, number) in [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)] {
        queue.put(Numbered(owner, number)).unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        let Numbered(owner, number) = queue.take().unwrap();
        order.push(number);
        queue.done(owner, Duration::ZERO);
    }
    assert_eq!(order, [1, 4, 6, 2, 5, 3]);
}

#[test]
fn whoever_has_fewest_at_work_is_next() {
    let queue = Queue::new(3, 10);
    for (owner, number) in [(1, 1), (1, 2), (1, 3)] {
        queue.put(Numbered(owner, number)).unwrap();
    }
    assert_eq!(queue.take(), Some(Numbered(1, 1)));
    assert_eq!(queue.take(), Some(Numbered(1, 2)));
    queue.put(Numbered(2, 4)).unwrap();
    assert_eq!(queue.take(), Some(Numbered(2, 4)));
}

#[test]
fn a_full_queue_turns_away_the_last_of_who_has_most() {
    let queue = Queue::new(1, 3);
    queue.put(Numbered(1, 0)).unwrap();
    queue.take().unwrap();
    for number in 1..=3 {
        queue.put(Numbered(1, number)).unwrap();
    }
    let turned_away = |job| queue.put(job).unwrap_err().0;
    assert_eq!(turned_away(Numbered(1, 4)), Numbered(1, 4));
    assert_eq!(turned_away(Numbered(2, 5)), Numbered(1, 3));
    // one more than the other would be no fairer
    assert_eq!(turned_away(Numbered(2, 6)), Numbered(2, 6));
}
