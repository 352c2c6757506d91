//! That a process is the one server of a folder. Several would each have limits
//! of their own, and take each other's holds for those of the dead.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// A claim to a folder, for as long as this lives. The operating system ends it
/// with the process, however that ends.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it holds the lock by being open")] File);

/// Why a folder cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process has it.
    #[error("another server runs on {}: stop it, or take another --data-dir", .0.display())]
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
    /// Claims a folder.
    ///
    /// # Errors
    /// When another process has it, or a file in it cannot be locked.
    pub fn take(folder: &Path) -> Result<Self, ClaimError> {
        let path = folder.join("lock");
        let unlockable = |source| ClaimError::Unlockable {
            path: path.clone(),
            source,
        };
        let options = File::options().create(true).append(true).open(&path);
        let file = options.map_err(unlockable)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(ClaimError::Taken(folder.to_owned())),
            Err(TryLockError::Error(source)) => Err(unlockable(source)),
        }
    }
}
