//! Where a checkpoint comes from.

mod display;
pub(crate) mod hub;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use plugin_sdk::{Error, ErrorKind};

use crate::checkpoint::{Bytes, CONFIG, Checkpoint, Loaded, Refusal};
use crate::gguf;
use crate::kernels::Dtype;

/// The small model in this binary; see `model/README.md`.
fn embedded() -> Checkpoint {
    Checkpoint {
        config: Cow::Borrowed(include_bytes!("../../model/config.json")),
        weights: vec![Bytes::Here(include_bytes!("../../model/model.safetensors"))],
        tokenizer: Cow::Borrowed(include_bytes!("../../model/tokenizer.json")),
        generation: None,
        tokenizer_config: None,
        template: None,
    }
}

/// A place to load a model from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This binary.
    Embedded,
    /// A folder, or a GGUF.
    Path(PathBuf),
    /// A model on the hub.
    Hub {
        /// `owner/name`
        id: String,
        /// A GGUF among its files.
        file: Option<String>,
        /// A branch, tag or commit.
        revision: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Path(path) => path.display().fmt(f),
            Self::Hub { id, file, revision } => {
                f.write_str(id)?;
                if let Some(file) = file {
                    write!(f, "/{file}")?;
                }
                match revision.as_str() {
                    "main" => Ok(()),
                    revision => write!(f, "@{revision}"),
                }
            }
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
        if path.is_absolute() || text.starts_with("./") || text.starts_with("../") || path.exists()
        {
            return Ok(Self::Path(path.to_owned()));
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_part = |part: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_plain)
        };
        let parts: Vec<_> = id.split('/').collect();
        let are_parts = parts.iter().all(|part| is_part(part)) && revision.split('/').all(is_part);
        let file = match &parts[..] {
            [_, _] => Some(None),
            [_, _, file @ ..] if is_gguf(Path::new(id)) => Some(Some(file.join("/"))),
            _ => None,
        };
        if let Some(file) = file.filter(|_| are_parts) {
            return Ok(Self::Hub {
                id: parts[..2].join("/"),
                file,
                revision: revision.to_owned(),
            });
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "model_path {text:?} is no folder or GGUF, no hub id (owner/name) and not \"embedded\""
            ),
        ))
    }

    /// Loads the model, by default in its family's dtype; returns it with the name of
    /// what was loaded.
    pub(crate) fn load(
        &self,
        cache: Option<&str>,
        dtype: Option<Dtype>,
    ) -> Result<(Loaded, String), Refusal> {
        match self {
            Self::Embedded => Ok((embedded().load(dtype)?, self.to_string())),
            Self::Path(path) => Ok((of_path(path, dtype)?, self.to_string())),
            Self::Hub { id, file, revision } => {
                let hub = hub::Hub::from_env();
                let snapshot = hub::fetch(&hub, id, file.as_deref(), revision, cache)?;
                let commit = snapshot
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let (loaded, name) = match file {
                    Some(file) => (
                        gguf::load(&snapshot.join(file), dtype)?,
                        format!("{id}/{file}"),
                    ),
                    None => (read(&snapshot)?.load(dtype)?, id.clone()),
                };
                Ok((loaded, format!("{name}@{commit}")))
            }
        }
    }
}

/// Loads a GGUF, or a folder with the files or with one GGUF.
fn of_path(path: &Path, dtype: Option<Dtype>) -> Result<Loaded, Refusal> {
    if is_gguf(path) {
        return gguf::load(path, dtype);
    }
    if !path.join(CONFIG).exists()
        && let Ok(entries) = std::fs::read_dir(path)
    {
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let found: Vec<_> = paths.filter(|path| is_gguf(path)).collect();
        match &found[..] {
            [] => {}
            [one] => return gguf::load(one, dtype),
            _ => {
                let reason = format!("there are {} GGUFs: name one of them", found.len());
                return Err(Refusal::Source(reason));
            }
        }
    }
    read(path)?.load(dtype)
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == gguf::EXTENSION)
}

fn read(folder: &Path) -> Result<Checkpoint, Refusal> {
    Checkpoint::read(|file| folder.join(file).into())
}
