//! Reloading: one loop for every trigger, and the only writer of the live set.
//!
//! load → check → swap → report, and open what changed meanwhile. Whatever fails leaves
//! what runs as it is and is reported.

mod opening;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::config::{self, Config, Environment, same_secret};
use crate::models::{Current, Loader, Model};
use crate::store::Store;
use crate::store::audit::{Act, Actor, Object};

use opening::{Awaited, Openings};
use watch::Watcher;

/// How long a report waits for models that are being loaded.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Models that are new.
    pub added: Vec<String>,
    /// Models that changed.
    pub changed: Vec<String>,
    /// Models that are gone.
    pub removed: Vec<String>,
    /// Models that could not be loaded, each with its reason.
    pub failed: Vec<(String, String)>,
    /// Models that are still being loaded.
    pub loading: Vec<String>,
    /// Sections and variables whose change needs a restart.
    pub needs_restart: Vec<String>,
}

impl Report {
    /// The report for whoever asked, and for the audit log.
    pub fn to_json(&self) -> Value {
        let failed = self.failed.iter();
        let failed: Vec<_> = failed
            .map(|(model, reason)| json!({ "model": model, "reason": reason }))
            .collect();
        json!({
            "added": self.added,
            "changed": self.changed,
            "removed": self.removed,
            "failed": failed,
            "loading": self.loading,
            "needs_restart": self.needs_restart,
        })
    }
}

type Outcome = Result<Report, Arc<config::Error>>;

/// What came of a reload at once, and the models that are yet to be loaded.
type Done = Result<(Report, Vec<Awaited>), Arc<config::Error>>;

/// Who asks for a reload, and whom to tell what came of it.
type Asker = (Actor, Option<oneshot::Sender<Done>>);

/// Asks for reloads and knows how the last one went; clones are cheap.
#[derive(Clone, Debug)]
pub struct Handle {
    triggers: mpsc::Sender<Asker>,
    error: Arc<Mutex<Option<String>>>,
}

impl Handle {
    /// Reloads and waits for the report, for a while also for the models that are to be
    /// loaded; `None` when the server is stopping.
    pub async fn reload(&self, by: Actor) -> Option<Outcome> {
        let (reply, done) = oneshot::channel();
        self.triggers.send((by, Some(reply))).await.ok()?;
        let (mut report, mut awaited) = match done.await.ok()? {
            Ok(done) => done,
            Err(error) => return Some(Err(error)),
        };
        let until = Instant::now() + PATIENCE;
        report.loading.clear();
        for one in &mut awaited {
            timeout_at(until, one.done()).await.ok();
            report.tell(one);
        }
        Some(Ok(report))
    }

    /// Asks for a reload without waiting. One that is asked for already serves.
    pub fn trigger(&self) {
        self.triggers.try_send((Actor::Server, None)).ok();
    }

    /// Why the configuration file as it is now is not what runs.
    pub fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }
}

/// Where the configuration comes from.
#[derive(Debug)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// Where it takes variables from.
    pub environment: Environment,
}

/// What the loop works with.
#[derive(Debug)]
pub struct Reloader {
    /// Where the configuration comes from.
    pub origin: Origin,
    /// What it replaces.
    pub current: Current,
    /// Opens backends.
    pub loader: Loader,
    /// Where reloads are put on record.
    pub store: Store,
    /// The time of that.
    pub clock: Clock,
}

impl Reloader {
    /// Makes the first set live, starts loading its models and then the loop,
    /// which ends with the last handle. From now on changed files are seen, and what has
    /// changed since `config` was read.
    pub fn start(self, config: Config) -> Handle {
        let (triggers, queue) = mpsc::channel(8);
        // a handle of the watcher's own would keep the loop alive
        let changed = triggers.downgrade();
        let watcher = Watcher::new(move || {
            if let Some(triggers) = changed.upgrade() {
                triggers.try_send((Actor::Server, None)).ok();
            }
        });
        let mut watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(%error, "files are not watched: reload by SIGHUP or POST /admin/reload");
            })
            .ok();
        self.follow(&mut watcher, &config);
        let handle = Handle {
            triggers,
            error: Arc::default(),
        };
        let mut openings = Openings::new(self.current.clone(), self.loader.clone());
        openings.apply(config.models.iter().cloned().map(Model::new).collect());
        // it was read before anything was watched
        let now = config::load(&self.origin.path, &self.origin.environment);
        if !now.is_ok_and(|now| now.source == config.source) {
            handle.trigger();
        }
        let error = Arc::clone(&handle.error);
        tokio::spawn(self.run(config, queue, error, watcher, openings));
        handle
    }

    async fn run(
        self,
        running: Config,
        mut queue: mpsc::Receiver<Asker>,
        last_error: Arc<Mutex<Option<String>>>,
        mut watcher: Option<Watcher>,
        mut openings: Openings,
    ) {
        loop {
            let first = tokio::select! {
                first = queue.recv() => first,
                Some(()) = openings.next() => continue,
            };
            let Some(first) = first else { return };
            let mut askers = vec![first];
            // whoever asked while the last reload ran is served by this one
            while let Ok(more) = queue.try_recv() {
                askers.push(more);
            }
            // reads files, whole components among them
            let read = tokio::task::block_in_place(|| {
                if let Some(watcher) = &mut watcher {
                    watcher.about_to_read();
                }
                let config = config::load(&self.origin.path, &self.origin.environment)?;
                // before they are read, so that no change is missed
                self.follow(&mut watcher, &config);
                let wanted: Vec<_> = config.models.iter().cloned().map(Model::new).collect();
                Ok((config, wanted))
            });
            let done = match read {
                Ok((config, wanted)) => {
                    let (mut report, awaited) = openings.apply(wanted);
                    report.needs_restart = needs_restart(&running, &config);
                    Ok((report, awaited))
                }
                Err(error) => Err(Arc::new(error)),
            };
            match &done {
                Ok((report, _)) => tracing::info!(?report, "configuration reloaded"),
                Err(error) => {
                    tracing::error!(%error, "configuration refused; what ran before runs on");
                }
            }
            *last_error.lock() = done.as_ref().err().map(ToString::to_string);
            for (actor, asker) in askers {
                self.put_on_record(&actor, &done).await;
                if let Some(asker) = asker {
                    asker.send(done.clone()).ok();
                }
            }
        }
    }

    /// Has the files of a configuration watched.
    fn follow(&self, watcher: &mut Option<Watcher>, config: &Config) {
        let Origin { path, environment } = &self.origin;
        let components = config.models.iter().filter(|model| model.is_file());
        let components = components.map(|model| Path::new(&model.plugin));
        let own = [path.as_path(), environment.file()].into_iter();
        if let Some(watcher) = watcher {
            watcher.follow(own.chain(components));
        }
    }

    async fn put_on_record(&self, by: &Actor, done: &Done) {
        let (action, after) = match done {
            Ok((report, _)) => ("configuration.reloaded", report.to_json()),
            Err(error) => {
                let error = error.to_string();
                ("configuration.refused", json!({ "error": error }))
            }
        };
        let act = Act {
            action,
            object: Object::Configuration,
            before: None,
            after: Some(after),
        };
        // what is done is done: the report is not held back for it
        if let Err(error) = self.store.record(by, act, self.clock.now()).await {
            tracing::error!(%error, "the reload is not on record");
        }
    }
}

fn needs_restart(running: &Config, config: &Config) -> Vec<String> {
    let (database, now) = (&running.database, &config.database);
    let sections = [
        ("server", running.server == config.server),
        ("requests", running.requests == config.requests),
        ("components", running.components == config.components),
        ("stripe", running.stripe == config.stripe),
        ("webhook", running.webhook == config.webhook),
        ("database", database.keep_usage_days == now.keep_usage_days),
        ("DATABASE_URL", same_secret(&database.url, &now.url)),
        (
            "REDIS_URL",
            same_secret(&running.redis_url, &config.redis_url),
        ),
    ];
    let sections = sections.iter().filter(|(_, is_same)| !is_same);
    let (before, now) = (&running.read_at_start, &config.read_at_start);
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let changed = names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(String::as_str);
    sections
        .map(|(name, _)| *name)
        .chain(changed)
        .map(str::to_owned)
        .collect()
}
