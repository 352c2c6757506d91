//! The models that are being opened, and how they come into the live set.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::models::{Current, Live, Loader, Model, State};

use super::Report;

/// Opens what is new or changed. Until a model is open the one before it answers.
#[derive(Debug)]
pub(super) struct Openings {
    current: Current,
    loader: Loader,
    /// By the models' numbers.
    opening: BTreeMap<i64, Opening>,
    /// Ends with each that is open or cannot be.
    waiting: JoinSet<()>,
}

/// A model on its way into the live set.
#[derive(Debug)]
struct Opening {
    model: Model,
    /// Dropped once the set has the model, or will not have it.
    done: watch::Sender<()>,
}

/// A model that somebody waits for.
#[derive(Clone, Debug)]
pub(super) struct Awaited {
    model: Model,
    done: watch::Receiver<()>,
}

impl Awaited {
    /// Waits until the live set has the model, or will not have it.
    pub async fn done(&mut self) {
        // nothing is ever sent: this is the end
        self.done.changed().await.ok();
    }

    fn is_done(&self) -> bool {
        self.done.has_changed().is_err()
    }
}

impl Report {
    /// Says what has become of a model, so far.
    pub(super) fn tell(&mut self, awaited: &Awaited) {
        let name = || awaited.model.spec.name.clone();
        match awaited.model.state() {
            State::Unavailable(reason) if awaited.is_done() => self.failed.push((name(), reason)),
            State::Ready(_) if awaited.is_done() => {}
            // perhaps another edit has overtaken it
            _ => self.loading.push(name()),
        }
    }
}

impl Openings {
    /// Openings into this set, by this loader.
    pub fn new(current: Current, loader: Loader) -> Self {
        Self {
            current,
            loader,
            opening: BTreeMap::new(),
            waiting: JoinSet::new(),
        }
    }

    /// Makes the models wanted live and begins to open those that are to be open. One that
    /// is being opened already goes on; what is no longer wanted is dropped. Returns the
    /// models that are not open yet too.
    pub fn apply(&mut self, wanted: Vec<Model>) -> (Report, Vec<Awaited>) {
        let before = self.current.load();
        let mut coming = std::mem::take(&mut self.opening);
        let (mut live, mut report, mut awaited) = (Live::default(), Report::default(), Vec::new());
        for wanted in wanted {
            let id = wanted.spec.id;
            let running = before.by_id(id).map(|model| &**model);
            let coming = coming.remove(&id);
            let latest = coming.as_ref().map(|coming| &coming.model).or(running);
            match latest {
                None => report.added.push(wanted.spec.name.clone()),
                Some(latest) if latest.differs(&wanted) => {
                    report.changed.push(wanted.spec.name.clone());
                }
                Some(_) => {}
            }
            let mut kept = running.into_iter().chain(latest);
            let model = kept
                .find_map(|model| model.reconfigured(&wanted))
                .unwrap_or(wanted);
            let is_in_use = running
                .is_some_and(|running| matches!(running.state(), State::Loading | State::Ready(_)));
            if model.spec.preload || is_in_use {
                model.begin_loading(&self.loader);
                let opening = match coming {
                    Some(coming) if coming.model.is(&model) => Opening {
                        model: model.clone(),
                        ..coming
                    },
                    _ => self.open(model.clone()),
                };
                awaited.push(Awaited {
                    model: model.clone(),
                    done: opening.done.subscribe(),
                });
                self.opening.insert(id, opening);
            }
            let answers = running.filter(|running| matches!(running.state(), State::Ready(_)));
            live.insert(match answers {
                // another model may have its name already
                Some(before) if !before.is(&model) => before.named(&model.spec.name),
                _ => model,
            });
        }
        let gone = before
            .models()
            .filter(|model| live.by_id(model.spec.id).is_none());
        report.removed = gone.map(|model| model.spec.name.clone()).collect();
        self.current.swap(live);
        self.make_live();
        awaited.iter().for_each(|one| report.tell(one));
        awaited.retain(|one| !one.is_done());
        (report, awaited)
    }

    fn open(&mut self, model: Model) -> Opening {
        let decided = model.decided();
        self.waiting.spawn(async move {
            decided.await;
        });
        let (done, _) = watch::channel(());
        Opening { model, done }
    }

    /// Waits for the next model that is open, or cannot be, and has the live set know.
    /// None when no model is waited for.
    pub async fn next(&mut self) -> Option<()> {
        self.waiting.join_next().await?.ok();
        self.make_live();
        Some(())
    }

    /// Has the live set know of the models that are open or cannot be.
    fn make_live(&mut self) {
        let is_decided = |_: &i64, opening: &mut Opening| opening.model.state().is_decided();
        let decided: Vec<_> = self.opening.extract_if(.., is_decided).collect();
        let mut live = Live::clone(&self.current.load());
        for (id, Opening { model, .. }) in &decided {
            let Some(before) = live.by_id(*id).filter(|before| !before.is(model)) else {
                continue;
            };
            let mut next = model.clone();
            if let State::Unavailable(reason) = model.state() {
                next = Model::clone(before);
                next.problem = Some(reason);
            }
            live.insert(next);
        }
        self.current.swap(live);
    }
}
