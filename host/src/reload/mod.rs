//! Reloading: one loop for every trigger, and the only writer of the live set.
//!
//! load → check → open what changed → swap → report. Whatever fails leaves
//! what runs as it is and is reported.

mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::{self, Config, Environment};
use crate::models::{Current, Live, Loader, Model, State};
use crate::store::Store;
use crate::store::audit::{Act, Actor, Object};

use watch::Watcher;

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
    /// Sections whose change needs a restart.
    pub needs_restart: Vec<&'static str>,
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
            "needs_restart": self.needs_restart,
        })
    }
}

type Outcome = Result<Report, Arc<config::Error>>;

/// Who asks for a reload, and whom to tell what came of it.
type Asker = (Actor, Option<oneshot::Sender<Outcome>>);

/// Asks for reloads and knows how the last one went; clones are cheap.
#[derive(Clone, Debug)]
pub struct Handle {
    triggers: mpsc::Sender<Asker>,
    error: Arc<Mutex<Option<String>>>,
}

impl Handle {
    /// Reloads and waits for the report; `None` when the server is stopping.
    pub async fn reload(&self, by: Actor) -> Option<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.triggers.send((by, Some(reply))).await.ok()?;
        outcome.await.ok()
    }

    /// Asks for a reload without waiting. One that is asked for already serves.
    pub fn trigger(&self) {
        self.triggers.try_send((Actor::Server, None)).ok();
    }

    /// Why the configuration file as it is now is not what runs.
    pub fn error(&self) -> Option<String> {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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
    /// which ends with the last handle. From now on changed files are seen.
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
        let mut live = Live::default();
        for spec in &config.models {
            live.insert(Model::new(spec.clone()));
        }
        for model in live.models().filter(|model| model.spec.preload) {
            let (model, loader) = (Arc::clone(model), self.loader.clone());
            tokio::spawn(async move { model.load(&loader).await });
        }
        self.current.swap(live);
        let error = Arc::clone(&handle.error);
        tokio::spawn(self.run(config, queue, error, watcher));
        handle
    }

    async fn run(
        self,
        running: Config,
        mut queue: mpsc::Receiver<Asker>,
        last_error: Arc<Mutex<Option<String>>>,
        mut watcher: Option<Watcher>,
    ) {
        while let Some(first) = queue.recv().await {
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
            let outcome = match read {
                Ok((config, wanted)) => {
                    let mut report = self.apply(wanted).await;
                    report.needs_restart = needs_restart(&running, &config);
                    Ok(report)
                }
                Err(error) => Err(Arc::new(error)),
            };
            match &outcome {
                Ok(report) => tracing::info!(?report, "configuration reloaded"),
                Err(error) => {
                    tracing::error!(%error, "configuration refused; what ran before runs on");
                }
            }
            *last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                outcome.as_ref().err().map(ToString::to_string);
            for (actor, asker) in askers {
                self.put_on_record(&actor, &outcome).await;
                if let Some(asker) = asker {
                    asker.send(outcome.clone()).ok();
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

    async fn put_on_record(&self, by: &Actor, outcome: &Outcome) {
        let (action, after) = match outcome {
            Ok(report) => ("configuration.reloaded", report.to_json()),
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

    /// Makes the models wanted live, each as soon as it is ready.
    async fn apply(&self, wanted: Vec<Model>) -> Report {
        let old = self.current.take();
        let mut live = Live::default();
        let mut report = Report::default();
        let mut opening = JoinSet::new();
        for model in wanted {
            let (name, preload) = (model.spec.name.clone(), model.spec.preload);
            let before = old.by_id(model.spec.id);
            match before {
                None => report.added.push(name),
                Some(before) if before.differs(&model) => report.changed.push(name),
                Some(_) => {}
            }
            if let Some(same) = before.and_then(|before| before.reconfigured(&model)) {
                if preload && matches!(same.state(), State::OnDemand) {
                    let (model, loader) = (same.clone(), self.loader.clone());
                    opening.spawn(async move {
                        model.load(&loader).await;
                        model
                    });
                }
                live.insert(same);
                continue;
            }
            // until the new one is ready the old one answers, if it can
            let kept = before.filter(|model| !matches!(model.state(), State::Unavailable(_)));
            live.insert(kept.map_or_else(|| model.clone(), |kept| Model::clone(kept)));
            if preload || kept.is_some() {
                let loader = self.loader.clone();
                opening.spawn(async move {
                    model.load(&loader).await;
                    model
                });
            }
        }
        report.removed = old
            .models()
            .filter(|model| live.by_id(model.spec.id).is_none())
            .map(|model| model.spec.name.clone())
            .collect();
        self.current.swap(live.clone());

        while let Some(opened) = opening.join_next().await {
            let Ok(model) = opened else { continue };
            if let State::Unavailable(reason) = model.state() {
                report
                    .failed
                    .push((model.spec.name.clone(), reason.clone()));
                let runs = live.by_id(model.spec.id).filter(|m| !m.is(&model)).cloned();
                if let Some(runs) = runs {
                    let mut kept = Model::clone(&runs);
                    kept.problem = Some(reason);
                    live.insert(kept);
                }
            } else {
                live.insert(model);
            }
            self.current.swap(live.clone());
        }
        report
    }
}

fn needs_restart(running: &Config, config: &Config) -> Vec<&'static str> {
    let mut sections = Vec::new();
    if running.server != config.server {
        sections.push("server");
    }
    if running.requests != config.requests {
        sections.push("requests");
    }
    if running.components != config.components {
        sections.push("components");
    }
    if running.stripe != config.stripe {
        sections.push("stripe");
    }
    if running.webhook != config.webhook {
        sections.push("webhook");
    }
    let redis = |config: &Config| {
        let url = config.redis_url.as_ref();
        url.map(|url| url.expose_secret().to_owned())
    };
    if redis(running) != redis(config) {
        sections.push("REDIS_URL");
    }
    sections
}
