//! Where a checkpoint comes from.

pub(crate) mod hub;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use plugin_sdk::{Error, ErrorKind};

use crate::checkpoint::{Bytes, Checkpoint, Loaded, Refusal};
use crate::kernels::Dtype;

/// The small model in this binary; see `model/README.md`.
const EMBEDDED: Checkpoint = Checkpoint {
    config: Cow::Borrowed(include_bytes!("../../model/config.json")),
    weights: Bytes::Here(include_bytes!("../../model/model.safetensors")),
    tokenizer: Cow::Borrowed(include_bytes!("../../model/tokenizer.json")),
};

/// A place to load a model from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This binary.
    Embedded,
    /// A folder with the three files.
    Folder(PathBuf),
    /// A model on the hub.
    Hub {
        /// `owner/name`
        id: String,
        /// A branch, tag or commit.
        revision: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Folder(path) => path.display().fmt(f),
            Self::Hub { id, revision } if revision == "main" => f.write_str(id),
            Self::Hub { id, revision } => write!(f, "{id}@{revision}"),
        }
    }
}

impl Source {
    /// The sources of a setting: one, or a JSON list of them.
    pub(crate) fn list(setting: &str) -> Result<Vec<Self>, Error> {
        let texts = match serde_json::from_str::<Vec<String>>(setting) {
            Ok(texts) => texts,
            Err(_) => vec![setting.to_owned()],
        };
        if texts.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "model_path lists no source",
            ));
        }
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<Self, Error> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let path = Path::new(text);
        if path.is_absolute() || text.starts_with("./") || text.starts_with("../") || path.is_dir()
        {
            return Ok(Self::Folder(path.to_owned()));
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_part = |part: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_plain)
        };
        let is_id = id
            .split_once('/')
            .is_some_and(|(owner, name)| is_part(owner) && is_part(name));
        let is_revision = revision.split('/').all(is_part);
        if is_id && is_revision {
            return Ok(Self::Hub {
                id: id.to_owned(),
                revision: revision.to_owned(),
            });
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "model_path {text:?} is no folder, no hub id (owner/name) and not \"embedded\""
            ),
        ))
    }

    /// Loads the model; returns it with the name of what was loaded.
    pub(crate) fn load(
        &self,
        cache: Option<&str>,
        dtype: Dtype,
    ) -> Result<(Loaded, String), Refusal> {
        match self {
            Self::Embedded => Ok((EMBEDDED.load(dtype)?, self.to_string())),
            Self::Folder(folder) => Ok((read(folder)?.load(dtype)?, self.to_string())),
            Self::Hub { id, revision } => {
                let snapshot = hub::fetch(&hub::Hub::from_env(), id, revision, cache)?;
                let commit = snapshot
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                Ok((read(&snapshot)?.load(dtype)?, format!("{id}@{commit}")))
            }
        }
    }
}

fn read(folder: &Path) -> Result<Checkpoint, Refusal> {
    Checkpoint::read(|file| folder.join(file).into())
}
