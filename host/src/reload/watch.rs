//! Watching files: the configuration, `.env`, and the components in files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify_debouncer_full::notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify_debouncer_full::notify::{RecommendedWatcher, RecursiveMode, Result};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};

/// How long a file must be left alone before it is read.
const QUIET: Duration = Duration::from_millis(100);

/// Watches the folders of files: a file that is replaced is another file, which a
/// watch of the file itself would miss. Ends when it is dropped.
pub(super) struct Watcher {
    debouncer: Debouncer<RecommendedWatcher, RecommendedCache>,
    files: Arc<Mutex<BTreeSet<PathBuf>>>,
    folders: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Calls `changed` after each change of a file that is followed.
    ///
    /// # Errors
    /// When the operating system cannot watch.
    pub(super) fn new(changed: impl Fn() + Send + 'static) -> Result<Self> {
        let files: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
        let followed = Arc::clone(&files);
        let debouncer = new_debouncer(QUIET, None, move |result: DebounceEventResult| {
            let Ok(events) = result else { return };
            let files = followed.lock().unwrap_or_else(PoisonError::into_inner);
            let mut paths = events
                .iter()
                .filter(|event| is_change(&event.kind))
                .flat_map(|event| &event.paths);
            if paths.any(|path| files.contains(path)) {
                changed();
            }
        })?;
        Ok(Self {
            debouncer,
            files,
            folders: BTreeSet::new(),
        })
    }

    /// Follows these files, which need not exist, and no others. A folder that is not
    /// there is not watched.
    pub(super) fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        // one spelling for a folder: its events come with one
        let files: BTreeSet<PathBuf> = files
            .filter_map(|file| {
                let absolute = std::path::absolute(file).ok()?;
                let folder = absolute.parent()?.canonicalize().ok()?;
                Some(folder.join(absolute.file_name()?))
            })
            .collect();
        let folders: BTreeSet<PathBuf> = files
            .iter()
            .filter_map(|file| file.parent())
            .map(Path::to_owned)
            .collect();
        // before anything is taken away, so that no change is missed
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = files;
        for folder in folders.difference(&self.folders) {
            if let Err(error) = self.debouncer.watch(folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "cannot watch for changes");
            }
        }
        for folder in self.folders.difference(&folders) {
            self.debouncer.unwatch(folder).ok();
        }
        self.folders = folders;
    }
}

/// Whether a file may be another one now. Where the system tells that a file which was
/// written is closed, it is not looked at before.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Data(_)) => !cfg!(target_os = "linux"),
        _ => true,
    }
}
