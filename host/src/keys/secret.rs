//! The secret that keys are hashed with: a file beside the database, so that a
//! copy of the database alone does not allow to test guesses.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

// the block of SHA-256: HMAC takes such a key as it is
const LENGTH: usize = 64;

/// 512 bits that only this server knows.
#[derive(Clone)]
pub struct Secret(Arc<[u8; LENGTH]>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Why the secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{}: expected {LENGTH} bytes", .0.display())]
    Length(PathBuf),
    /// The operating system gives no randomness.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
}

impl Secret {
    /// Reads the secret of the file, or makes both; only the owner may read it.
    ///
    /// # Errors
    /// When the file cannot be read or made, or is not a secret.
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File {
            path: path.to_owned(),
            source,
        };
        match std::fs::read(path) {
            Ok(bytes) => {
                let bytes = bytes
                    .try_into()
                    .map_err(|_| SecretError::Length(path.to_owned()))?;
                Ok(Self(Arc::new(bytes)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut bytes = [0; LENGTH];
                getrandom::fill(&mut bytes).map_err(SecretError::Randomness)?;
                write_new(path, &bytes).map_err(failed)?;
                Ok(Self(Arc::new(bytes)))
            }
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        *self.0
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
