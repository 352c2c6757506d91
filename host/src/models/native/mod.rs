//! Plugins compiled into this program.
//!
//! A plugin blocks while it computes, so it never runs on a thread of the
//! async runtime: [`Native::open`] loads it on a thread of its own, and as many
//! worker threads as completions may run at once take requests from a bounded
//! queue, of each API key in turn. What a completion reports goes to its request through a bounded
//! channel; a request that is gone closes the channel, which the worker sees
//! before its next step, and cancels the one under way. A panic of the plugin fails the
//! one request.

mod queue;
#[cfg(feature = "twins")]
mod twins;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use plugin_sdk::{Backend, Error, ErrorKind, Event, PluginInfo, Request, Settings, TokenEstimate};
use tokio::sync::{mpsc, oneshot};

use queue::{Queue, Waiting};

/// What a worker may be ahead of its request, in calls of
/// [`plugin_sdk::Completion::next`].
const AHEAD: usize = 32;

/// Whether a native plugin of this name is compiled in.
pub fn is_known(plugin: &str) -> bool {
    match plugin {
        "transformer" | "gpt2" => true,
        #[cfg(feature = "twins")]
        "lawgent-thinking" | "offline" => true,
        _ => false,
    }
}

/// How much of a model's work happens at once.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Completions that run at once, each on a thread; 0 counts as 1.
    pub parallel: usize,
    /// Requests that wait for a thread beyond those; one more is refused.
    pub queue: usize,
}

type Estimate = dyn Fn(&Request) -> Result<TokenEstimate, Error> + Send + Sync;

/// A loaded plugin and its threads, which end when it is dropped and the
/// running completions are done.
pub struct Native {
    info: PluginInfo,
    estimate: Arc<Estimate>,
    queue: Arc<Queue<Job>>,
}

/// One answer in the making. Dropping it stops the work after the step under way.
#[derive(Debug)]
pub struct Completion {
    events: mpsc::Receiver<Result<Vec<Event>, Error>>,
    _cancel: Cancel,
}

/// Has a plugin that blocks in a step return from it. Called when this is dropped, so
/// also where the request left before it knew that the plugin had accepted it.
struct Cancel(Option<Box<dyn FnOnce() + Send>>);

/// A request on its way to a worker.
struct Job {
    request: Request,
    /// Number of the API key it came with.
    key: i64,
    /// Answered once, when the plugin accepted or refused the request; closed
    /// when nobody waits for it any more.
    accepted: oneshot::Sender<Result<Cancel, Error>>,
    events: mpsc::Sender<Result<Vec<Event>, Error>>,
    queued: Instant,
}

impl Waiting for Job {
    fn is_abandoned(&self) -> bool {
        self.accepted.is_closed()
    }

    fn owner(&self) -> i64 {
        self.key
    }
}

impl Native {
    /// Loads the plugin called `plugin` on a thread of its own; `model` names
    /// the threads and the log lines.
    ///
    /// # Errors
    /// The plugin's own; [`ErrorKind::InvalidRequest`] when none has this name;
    /// [`ErrorKind::Internal`] with the code `plugin_failed` when it panics or a
    /// thread cannot be started.
    pub async fn open(
        plugin: &str,
        model: &str,
        settings: Settings,
        options: Options,
    ) -> Result<Self, Error> {
        match plugin {
            // the first model it could run gave it the second name, and configurations have it
            "transformer" | "gpt2" => {
                Self::open_as::<transformer::Transformer>(model, settings, options).await
            }
            #[cfg(feature = "twins")]
            "lawgent-thinking" => {
                Self::open_as::<twins::Completions>(model, settings, options).await
            }
            #[cfg(feature = "twins")]
            "offline" => Self::open_as::<twins::Offline>(model, settings, options).await,
            _ => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("no native plugin is called {plugin:?}"),
            )),
        }
    }

    async fn open_as<B>(model: &str, settings: Settings, options: Options) -> Result<Self, Error>
    where
        B: Backend + Send + Sync + 'static,
    {
        let (loaded, backend) = oneshot::channel();
        spawn(&format!("{model} load"), move || {
            let opened = catch_unwind(|| {
                let backend = B::open(&settings)?;
                let info = backend.describe()?;
                Ok((Arc::new(backend), info))
            });
            // nobody waits any more: the backend is dropped again
            let _ = loaded.send(opened.unwrap_or_else(|panic| Err(failed(&*panic))));
        })?;
        let (backend, info) = backend.await.map_err(|_| failed(&"its thread ended"))??;

        let parallel = options.parallel.max(1);
        let queue = Arc::new(Queue::new(parallel, options.queue));
        let estimator = Arc::clone(&backend);
        let native = Self {
            info,
            estimate: Arc::new(move |request| estimator.estimate(request)),
            queue: Arc::clone(&queue),
        };
        for number in 0..parallel {
            let (queue, backend) = (Arc::clone(&queue), Arc::clone(&backend));
            let model = model.to_owned();
            // on failure `native` is dropped, which ends the threads started so far
            spawn(&format!("{model} {number}"), move || {
                while let Some(job) = queue.take() {
                    let (key, begun) = (job.key, Instant::now());
                    work(&*backend, &model, job);
                    queue.done(key, begun.elapsed());
                }
            })?;
        }
        Ok(native)
    }

    /// What the plugin says it is.
    pub fn info(&self) -> &PluginInfo {
        &self.info
    }

    /// How many tokens the prompt will be.
    ///
    /// # Errors
    /// The plugin's own; [`ErrorKind::Internal`] with the code `plugin_failed`
    /// when it panics.
    pub async fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        // a long prompt takes its tokenizer milliseconds
        let (estimate, request) = (Arc::clone(&self.estimate), request.clone());
        tokio::task::spawn_blocking(move || estimate(&request))
            .await
            .unwrap_or_else(|error| {
                Err(match error.try_into_panic() {
                    Ok(panic) => failed(&*panic),
                    Err(error) => failed(&error.to_string()),
                })
            })
    }

    /// Waits for a worker thread and has the plugin accept the request there; `key`
    /// is the number of the API key it came with, which takes turns with others.
    /// Dropping the future takes the request out of the queue again.
    ///
    /// # Errors
    /// The plugin's own; [`ErrorKind::Overloaded`] with a time to try again when
    /// the queue is full; [`ErrorKind::Internal`] with the code `plugin_failed`
    /// when the plugin panics.
    pub async fn generate(&self, key: i64, request: Request) -> Result<Completion, Error> {
        let (accepted, acceptance) = oneshot::channel();
        let (sender, events) = mpsc::channel(AHEAD);
        let job = Job {
            request,
            key,
            accepted,
            events: sender,
            queued: Instant::now(),
        };
        if let Err((turned_away, wait)) = self.queue.put(job) {
            // it may be this one
            let _ = turned_away.accepted.send(Err(full(wait)));
        }
        let cancel = acceptance
            .await
            .map_err(|_| failed(&"its thread ended"))??;
        Ok(Completion {
            events,
            _cancel: cancel,
        })
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native")
            .field("info", &self.info)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Completion {
    /// What happened since the last call; see [`plugin_sdk::Completion::next`].
    ///
    /// # Errors
    /// The plugin's own; [`ErrorKind::Internal`] with the code `plugin_failed`
    /// when it panicked.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        let ended = "the completion has ended";
        self.events
            .recv()
            .await
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, ended)))
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take()
            && let Err(panic) = catch_unwind(AssertUnwindSafe(cancel))
        {
            tracing::error!(error = %failed(&*panic), "the plugin panicked");
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").finish_non_exhaustive()
    }
}

/// There is no place to wait; one is likely to be free after this time.
fn full(wait: Duration) -> Error {
    Error::new(
        ErrorKind::Overloaded,
        "the model is busy and its queue is full",
    )
    .code("queue_full")
    .retry_after_ms(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX))
}

/// Runs one request to its end, the plugin's panics included.
fn work<B: Backend>(backend: &B, model: &str, job: Job) {
    let Job {
        request,
        accepted,
        events,
        queued,
        ..
    } = job;
    let waited = queued.elapsed();
    let request_id = request.request_id.clone();
    tracing::debug!(
        model,
        request_id,
        queued_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        "a worker takes the request"
    );
    let mut accepted = Some(accepted);
    let run = catch_unwind(AssertUnwindSafe(|| {
        let completion = match backend.generate(request) {
            Ok(completion) => completion,
            Err(error) => {
                answer(&mut accepted, Err(error));
                return;
            }
        };
        let cancel = Cancel(plugin_sdk::Completion::canceller(&completion));
        if answer(&mut accepted, Ok(cancel)) {
            report(completion, &events);
        }
    }));
    if let Err(panic) = run {
        let error = failed(&*panic);
        tracing::error!(model, request_id, %error, "the plugin panicked");
        if !answer(&mut accepted, Err(error.clone())) {
            // nobody may be left to read it
            let _ = events.blocking_send(Err(error));
        }
    }
}

/// Whether this was the first answer and somebody got it.
fn answer(
    accepted: &mut Option<oneshot::Sender<Result<Cancel, Error>>>,
    outcome: Result<Cancel, Error>,
) -> bool {
    accepted
        .take()
        .is_some_and(|accepted| accepted.send(outcome).is_ok())
}

/// Passes on what a completion reports until its end, or until nobody listens.
fn report(
    mut completion: impl plugin_sdk::Completion,
    events: &mpsc::Sender<Result<Vec<Event>, Error>>,
) {
    while !events.is_closed() {
        let step = completion.next();
        let is_last = match &step {
            Ok(step) => step.iter().any(|event| matches!(event, Event::Finish(_))),
            Err(_) => true,
        };
        if events.blocking_send(step).is_err() || is_last {
            return;
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    // a NUL cannot be in a thread's name
    let name = name.replace('\0', " ");
    match thread::Builder::new().name(name).spawn(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(&format!("cannot start a thread: {error}"))),
    }
}

/// The error of a plugin that broke; `cause` is a panic's payload or a text.
fn failed(cause: &(dyn Any + Send)) -> Error {
    let text = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::new(ErrorKind::Internal, "the model's plugin failed")
        .code("plugin_failed")
        .detail(text)
}

#[cfg(test)]
mod tests;
