//! That a process is the one server of a folder, and of a file. Several would each have
//! limits of their own, and none would see what the others hold.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::Place;

/// A claim to a folder and to the file of a database, for as long as this lives. The operating system ends it with the process, however that ends.
#[derive(Debug)]
pub struct Claim {
    #[expect(dead_code, reason = "they hold the locks by being open")]
    locks: Vec<File>,
}

/// Why something cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process has it.
    #[error("another server runs on {}: stop it, or take another --data-dir and database", .0.display())]
    Taken(PathBuf),
    /// There can be no lock.
    #[error("cannot lock {}: {source}", path.display())]
    Unlockable {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Claim {
    /// Claims what a server has to itself: its folder and its database, unless it shares
    /// that with others.
    ///
    /// # Errors
    /// When another process has it, or a file in it cannot be locked.
    pub fn take(folder: &Path, place: &Place) -> Result<Self, ClaimError> {
        let mut locks = Vec::new();
        if let Place::File(file) = place {
            locks.push(lock(&folder.join("lock"), folder)?);
            // one of another folder may have it
            locks.push(lock(&file.with_added_extension("lock"), file)?);
        }
        Ok(Self { locks })
    }
}

/// Locks a file, for what it stands for.
fn lock(path: &Path, of: &Path) -> Result<File, ClaimError> {
    let unlockable = |source| ClaimError::Unlockable {
        path: path.to_owned(),
        source,
    };
    let options = File::options().create(true).append(true).open(path);
    let file = options.map_err(unlockable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ClaimError::Taken(of.to_owned())),
        Err(TryLockError::Error(source)) => Err(unlockable(source)),
    }
}
