//! Watching files: the configuration, `.env`, and the components in files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind};
use notify::{
    Config, Event, EventKindMask, RecommendedWatcher, RecursiveMode, Result, Watcher as _,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a file must be left alone before it is read.
const QUIET: Duration = Duration::from_millis(100);
/// Steps of a path, those of its links among them, which may lead in a circle.
const STEPS: usize = 1000;
/// How often is looked again while there are folders that were not there before.
const LOOKS: usize = 8;

/// Watches the folders of files: a file that is replaced is another file, which a
/// watch of the file itself would miss. Ends when it is dropped.
pub(super) struct Watcher {
    watcher: RecommendedWatcher,
    /// As they were asked for.
    asked: Vec<PathBuf>,
    followed: Arc<Mutex<Followed>>,
    /// Those that are watched, and which ones they were then: another may be there by
    /// the same name.
    folders: BTreeMap<PathBuf, Option<Identity>>,
}

/// The device of a folder, and its number there.
type Identity = (u64, u64);

#[derive(Default)]
struct Followed {
    /// What decides which files are found, and the folders of it.
    places: BTreeSet<PathBuf>,
    /// What of it has changed since the files were last about to be read.
    changed: BTreeSet<PathBuf>,
}

impl Followed {
    /// Takes note of an event; says whether there is something to read.
    fn note(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.changed.extend(self.places.iter().cloned());
            return true;
        }
        let mut is_told = false;
        for path in event
            .paths
            .iter()
            .filter(|path| self.places.contains(*path))
        {
            if is_begun(&event.kind, path) {
                // nor is it to be read because the one before it is gone
                self.changed.remove(path);
            } else if is_change(&event.kind) {
                self.changed.insert(path.clone());
                is_told = true;
            }
        }
        is_told
    }
}

impl Watcher {
    /// Calls `changed` when a file that is followed has changed, unless all were read since:
    /// see [`Self::about_to_read`]. It is called from a task.
    ///
    /// # Errors
    /// When the operating system cannot watch.
    pub(super) fn new(changed: impl Fn() + Send + 'static) -> Result<Self> {
        let followed: Arc<Mutex<Followed>> = Arc::default();
        let (touched, mut touches) = mpsc::channel(1);
        let handler = {
            let followed = Arc::clone(&followed);
            move |event: Result<Event>| {
                let Ok(event) = event else { return };
                if followed.lock().note(&event) {
                    // one that waits is one for all
                    touched.try_send(()).ok();
                }
            }
        };
        let config = Config::default().with_event_kinds(kinds());
        let watcher = RecommendedWatcher::new(handler, config)?;
        let seen = Arc::clone(&followed);
        tokio::spawn(async move {
            while touches.recv().await.is_some() {
                while let Ok(Some(())) = timeout(QUIET, touches.recv()).await {}
                if !seen.lock().changed.is_empty() {
                    changed();
                }
            }
        });
        Ok(Self {
            watcher,
            asked: Vec::new(),
            followed,
            folders: BTreeMap::new(),
        })
    }

    /// Follows these files, which need not exist, and no others.
    pub(super) fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let asked: Vec<_> = files.map(Path::to_owned).collect();
        // the same were looked at when they were about to be read
        if asked != self.asked {
            self.asked = asked;
            self.look_again();
        }
    }

    /// Says that all files are about to be read, so that no change until now is to be told.
    /// They are followed to where links lead now, into folders that may be new: Kubernetes
    /// replaces the files of a volume so.
    pub(super) fn about_to_read(&mut self) {
        self.followed.lock().changed.clear();
        self.look_again();
    }

    fn look_again(&mut self) {
        for _ in 0..LOOKS {
            let mut places = BTreeSet::new();
            for file in &self.asked {
                trace(file, &mut places);
            }
            let folders: BTreeSet<PathBuf> = places
                .iter()
                .filter_map(|place| place.parent())
                .map(Path::to_owned)
                .collect();
            places.extend(folders.iter().cloned());
            // before anything is taken away, so that no change is missed
            self.followed.lock().places = places;
            // what came into a folder before it was watched is found by another look
            if !self.watch(folders) {
                return;
            }
        }
    }

    /// Watches these folders and no others; says whether one is new.
    fn watch(&mut self, folders: BTreeSet<PathBuf>) -> bool {
        let (mut watched, mut is_one_new) = (BTreeMap::new(), false);
        for folder in folders {
            let identity = identity(&folder);
            let before = self.folders.remove(&folder);
            let is_new = before != Some(identity);
            if before.is_some() && is_new {
                // the watch went with the one that was moved away
                self.watcher.unwatch(&folder).ok();
            }
            // the others too: the watch of one that was made anew may have gone with it
            match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    is_one_new |= is_new;
                    watched.insert(folder, identity);
                }
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "cannot watch for changes");
                }
            }
        }
        for folder in self.folders.keys() {
            self.watcher.unwatch(folder).ok();
        }
        self.folders = watched;
        is_one_new
    }
}

/// What the system is to tell. On Linux it tells when a file is closed that was written,
/// and need not tell of each write to a file: this server's log may be in the same folder.
fn kinds() -> EventKindMask {
    let kinds = EventKindMask::CREATE
        | EventKindMask::REMOVE
        | EventKindMask::MODIFY_NAME
        | EventKindMask::MODIFY_META;
    if cfg!(target_os = "linux") {
        kinds | EventKindMask::ACCESS_CLOSE
    } else {
        kinds | EventKindMask::MODIFY_DATA
    }
}

/// Whether a file may be another one now.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => *kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Whether a file is only begun: Linux tells when it is closed. A link is whole at once.
fn is_begun(kind: &EventKind, path: &Path) -> bool {
    let is_file = || {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| found.is_file() && found.nlink() == 1)
    };
    cfg!(target_os = "linux") && *kind == EventKind::Create(CreateKind::File) && is_file()
}

fn identity(folder: &Path) -> Option<Identity> {
    let found = folder.metadata().ok()?;
    Some((found.dev(), found.ino()))
}

/// Adds what decides which file is found at a path: each link on the way, and the file
/// itself, or the first part of the path that is missing. All are in folders that are there,
/// in one spelling, as their events come with one.
fn trace(file: &Path, places: &mut BTreeSet<PathBuf>) {
    let Ok(mut ahead) = std::path::absolute(file) else {
        return;
    };
    let mut folder = PathBuf::new();
    for _ in 0..STEPS {
        let mut parts = ahead.components();
        let Some(part) = parts.next() else { return };
        let rest = parts.as_path();
        let place = match part {
            Component::ParentDir => folder.parent().unwrap_or(&folder).to_owned(),
            part => folder.join(part),
        };
        if let Ok(to) = place.read_link() {
            ahead = to.join(rest);
            places.insert(place);
        } else if place.is_dir() && !rest.as_os_str().is_empty() {
            ahead = rest.to_owned();
            folder = place;
        } else {
            places.insert(place);
            return;
        }
    }
}
