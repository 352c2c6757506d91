//! File and environment in, [`Config`] or every problem found out.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::check::{self, Problem};
use super::{Config, Model, Sources, env_file};

/// How variables begin that are read once, at the start, and not by [`load`]: by the command
/// line, the hub's client and OpenTelemetry.
const READ_AT_START: [&str; 3] = ["HF_", "MODEL_HOST_", "OTEL_"];

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, or not of the shape expected; or it is `.env`, and not that.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, without values: they may be secrets.
        message: String,
    },
    /// The values do not go together.
    #[error("{}: {}", path.display(), List(problems))]
    Check {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

struct List<'a>(&'a [Problem]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Environment variables: those of the process, and behind them those of the
/// file `.env`, which is read again at each reload.
#[derive(Clone, Debug)]
pub struct Environment {
    process: HashMap<String, String>,
    file: PathBuf,
}

impl Environment {
    /// The environment of the process as it is now, and `file` behind it.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        // what is not text is none of ours
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            process: std::env::vars_os().filter_map(text).collect(),
            file: file.into(),
        }
    }

    /// The file behind the process's variables.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The variables of the file; none if there is no file.
    ///
    /// # Errors
    /// When it cannot be read or parsed.
    pub fn of_file(&self) -> Result<HashMap<String, String>, Error> {
        let text = match std::fs::read_to_string(&self.file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            read => read.map_err(|source| Error::Read {
                path: self.file.clone(),
                source,
            })?,
        };
        env_file::parse(&text, &self.process).map_err(|message| Error::Parse {
            path: self.file.clone(),
            message,
        })
    }

    /// All variables, those of the process over those of the file.
    fn read(&self) -> Result<HashMap<String, String>, Error> {
        let mut all = self.of_file()?;
        all.extend(self.process.clone());
        all.retain(|_, value| !value.is_empty());
        Ok(all)
    }
}

/// Reads the configuration at `path`. Texts in it may name environment
/// variables as `${NAME}` or `${NAME:-default}`; relative paths are taken from the file's folder.
///
/// A model that names a variable which is not set is kept, marked unavailable.
///
/// # Errors
/// When the file cannot be read or parsed, or with every problem of its values.
pub fn load(path: &Path, environment: &Environment) -> Result<Config, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let variables = environment.read()?;
    let source = source(&text, &variables);
    let parse_error = |message: String| Error::Parse {
        path: path.to_owned(),
        message,
    };
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
        parse_error(match e.span() {
            Some(span) => {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                format!("line {line}: {}", e.message())
            }
            None => e.message().to_owned(),
        })
    })?;

    let mut models = Vec::new();
    match table.remove("models") {
        Some(Value::Array(entries)) => {
            for (index, entry) in entries.into_iter().enumerate() {
                let model = model(entry, &variables)
                    .map_err(|message| parse_error(format!("models[{index}].{message}")))?;
                models.push(model);
            }
        }
        // taken for none, a typing error would remove every model
        Some(_) => {
            return Err(parse_error(
                "models: expected a list, [[models]]".to_owned(),
            ));
        }
        None => {}
    }
    let mut missing = Vec::new();
    for (field, value) in &mut table {
        expand(field, value, &variables, &mut missing).map_err(parse_error)?;
    }
    if let Some(name) = missing.first() {
        return Err(parse_error(format!(
            "environment variable {name} is not set"
        )));
    }
    let mut config: Config = typed(Value::Table(table)).map_err(parse_error)?;
    config.models = models;
    config.source = source;
    config.read_at_start = read_at_start(&variables);
    config.stripe.secret_key = variables
        .get("STRIPE_SECRET_KEY")
        .cloned()
        .map(SecretString::from);
    config.redis_url = variables.get("REDIS_URL").cloned().map(SecretString::from);
    config.database.url = variables
        .get("DATABASE_URL")
        .cloned()
        .map(SecretString::from);
    if let Some(base) = variables.get("STRIPE_API_BASE") {
        config.stripe.api_base = Some(base.clone());
    }

    let folder = path.parent().unwrap_or(Path::new(""));
    config
        .models
        .iter_mut()
        .for_each(|model| resolve(model, folder));
    match check::problems(&config) {
        problems if problems.is_empty() => Ok(config),
        problems => Err(Error::Check {
            path: path.to_owned(),
            problems,
        }),
    }
}

/// A hash of what a configuration is read from.
fn source(text: &str, variables: &HashMap<String, String>) -> [u8; 32] {
    let in_order: BTreeMap<_, _> = variables.iter().collect();
    Sha256::digest(format!("{text:?} {in_order:?}")).into()
}

/// The variables that are read once, with hashes of their values.
fn read_at_start(variables: &HashMap<String, String>) -> BTreeMap<String, [u8; 32]> {
    let is_one = |name: &str| READ_AT_START.iter().any(|start| name.starts_with(start));
    let found = variables.iter().filter(|(name, _)| is_one(name));
    found
        .map(|(name, value)| (name.clone(), Sha256::digest(value).into()))
        .collect()
}

/// A value of the type wanted, or what is wrong with which field.
fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| format!("{}: {}", error.path(), error.inner().message()))
}

/// Reads one entry of `[[models]]`.
fn model(mut entry: Value, variables: &HashMap<String, String>) -> Result<Model, String> {
    let mut missing = Vec::new();
    if let Value::Table(fields) = &mut entry {
        for (field, value) in fields {
            expand(field, value, variables, &mut missing)?;
        }
    }
    let mut model: Model = typed(entry)?;
    if !missing.is_empty() {
        let names = missing.join(", ");
        model.unavailable = Some(format!("environment variable not set: {names}"));
    }
    Ok(model)
}

/// Replaces `${NAME}` and `${NAME:-default}` in every text of the value `at` a field; names of unset
/// variables go to `missing`.
///
/// # Errors
/// When a `${` has no end, or stands in a default, with the field: not its text, it may be a secret.
fn expand(
    at: &str,
    value: &mut Value,
    variables: &HashMap<String, String>,
    missing: &mut Vec<String>,
) -> Result<(), String> {
    match value {
        Value::String(text) => {
            let mut done = String::new();
            let mut rest = text.as_str();
            while let Some((before, after)) = rest.split_once("${") {
                let Some((name, tail)) = after.split_once('}') else {
                    return Err(format!("{at}: a ${{ has no }}"));
                };
                if name.contains("${") {
                    return Err(format!("{at}: a ${{ stands in another one"));
                }
                done.push_str(before);
                let (name, default) = match name.split_once(":-") {
                    Some((name, default)) => (name, Some(default)),
                    None => (name, None),
                };
                match variables.get(name).map(String::as_str).or(default) {
                    Some(found) => done.push_str(found),
                    None => missing.push(name.to_owned()),
                }
                rest = tail;
            }
            *text = done + rest;
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(&format!("{at}[{index}]"), item, variables, missing)?;
            }
        }
        Value::Table(table) => {
            for (field, value) in table {
                expand(&format!("{at}.{field}"), value, variables, missing)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Takes a component's and a local model's relative paths from `folder`.
fn resolve(model: &mut Model, folder: &Path) {
    let from_folder = |text: &mut String| {
        let joined = folder.join(&*text);
        if joined.exists()
            && let Some(path) = joined.to_str()
        {
            *text = path.to_owned();
        }
    };
    if model.is_file() {
        model.plugin = folder.join(&model.plugin).to_string_lossy().into_owned();
    }
    match &mut model.model_path {
        Some(Sources::One(source)) => from_folder(source),
        Some(Sources::Several(sources)) => sources.iter_mut().for_each(from_folder),
        None => {}
    }
}
