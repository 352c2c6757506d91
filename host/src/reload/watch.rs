//! Watching files: the configuration, `.env`, and the components in files.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind};
use notify::{
    Config, Event, EventKindMask, RecommendedWatcher, RecursiveMode, Result, Watcher as _,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a file must be left alone before it is read.
const QUIET: Duration = Duration::from_millis(100);

/// Watches the folders of files: a file that is replaced is another file, which a
/// watch of the file itself would miss. Ends when it is dropped.
pub(super) struct Watcher {
    watcher: RecommendedWatcher,
    /// As they were asked for.
    asked: Vec<PathBuf>,
    followed: Arc<Mutex<Followed>>,
    folders: BTreeSet<PathBuf>,
}

#[derive(Default)]
struct Followed {
    /// In their folders, and where links lead.
    files: BTreeSet<PathBuf>,
    /// Those that have changed since they were last about to be read.
    changed: BTreeSet<PathBuf>,
}

impl Followed {
    /// Takes note of an event; says whether there is something to read.
    fn note(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.changed.extend(self.files.iter().cloned());
            return true;
        }
        let mut is_told = false;
        for path in event.paths.iter().filter(|path| self.files.contains(*path)) {
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
                if lock(&followed).note(&event) {
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
                if !lock(&seen).changed.is_empty() {
                    changed();
                }
            }
        });
        Ok(Self {
            watcher,
            asked: Vec::new(),
            followed,
            folders: BTreeSet::new(),
        })
    }

    /// Follows these files, which need not exist, and no others. A folder that is not
    /// there is not watched.
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
        lock(&self.followed).changed.clear();
        self.look_again();
    }

    fn look_again(&mut self) {
        let files: BTreeSet<PathBuf> = self.asked.iter().flat_map(|file| places(file)).collect();
        let folders: BTreeSet<PathBuf> = files
            .iter()
            .filter_map(|file| file.parent())
            .map(Path::to_owned)
            .collect();
        // before anything is taken away, so that no change is missed
        lock(&self.followed).files = files;
        // those that are watched too: another folder may be there by the same name
        for folder in &folders {
            if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "cannot watch for changes");
            }
        }
        for folder in self.folders.difference(&folders) {
            self.watcher.unwatch(folder).ok();
        }
        self.folders = folders;
    }
}

fn lock(followed: &Mutex<Followed>) -> MutexGuard<'_, Followed> {
    followed.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Where a file is, in one spelling for a folder, as its events come with one; and where it
/// leads if it is a link.
fn places(file: &Path) -> impl Iterator<Item = PathBuf> {
    let in_folder = || {
        let absolute = std::path::absolute(file).ok()?;
        let folder = absolute.parent()?.canonicalize().ok()?;
        Some(folder.join(absolute.file_name()?))
    };
    in_folder().into_iter().chain(file.canonicalize().ok())
}
