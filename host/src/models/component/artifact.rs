//! The bytes of a component.

use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// A component as it was found, read once for all that is done with it.
pub struct Artifact {
    name: String,
    bytes: Vec<u8>,
    digest: String,
}

impl Artifact {
    /// A component of these bytes; `name` says where they are from.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            digest: sha256(&bytes),
            bytes,
        }
    }

    /// Reads a `.wasm` file.
    ///
    /// # Errors
    /// With what to tell the operator.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let bytes =
            std::fs::read(path).map_err(|error| format!("{name}: cannot read it: {error}"))?;
        Ok(Self::new(name.to_string(), bytes))
    }

    /// Where it is from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the bytes, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Compares the digest with the one that the operator expects, if any.
    ///
    /// # Errors
    /// With both.
    pub fn expect(self, sha256: Option<&str>) -> Result<Self, String> {
        match sha256 {
            Some(expected) if expected != self.digest => Err(format!(
                "{}: its SHA-256 is {}, and the configuration expects {expected}",
                self.name, self.digest
            )),
            _ => Ok(self),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// SHA-256 in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
