//! From a model's configuration to its backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use plugin_sdk::Settings;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use crate::config;

use super::component::{Artifact, Component, Pulled, Runtime, Spec, Upstream};
use super::{Backend, native};

/// Opens backends.
#[derive(Clone, Debug)]
pub struct Loader {
    /// What runs components.
    pub runtime: Arc<Runtime>,
    /// Components from registries.
    pub pulled: Pulled,
}

impl Loader {
    /// Opens a model's backend.
    ///
    /// # Errors
    /// With the reason to show.
    pub(super) async fn open(
        &self,
        model: &config::Model,
        found: Found,
    ) -> Result<Backend, String> {
        if let Some(reason) = &model.unavailable {
            return Err(reason.clone());
        }
        let settings = settings(model);
        let opened = if model.is_component() {
            let spec = Spec {
                model: model.name.clone(),
                artifact: self.artifact(model, found).await?,
                settings,
                upstream: upstream(model)?,
                limits: model.limits.clone(),
            };
            Component::open(&self.runtime, spec)
                .await
                .map(Backend::Component)
        } else if native::is_known(&model.plugin) {
            let options = native::Options {
                parallel: model.limits.parallel,
                queue: model.limits.queue,
            };
            native::Native::open(&model.plugin, &model.name, settings, options)
                .await
                .map(Backend::Native)
        } else {
            return Err(format!(
                "unknown plugin {:?}: expected a native plugin's name, a file that ends in .wasm, or oci://…",
                model.plugin
            ));
        };
        opened.map_err(|error| error.to_string())
    }

    /// The component of a model, and the one that the operator expects.
    async fn artifact(&self, model: &config::Model, found: Found) -> Result<Artifact, String> {
        let artifact = match found {
            Found::File(read) => read?,
            Found::Elsewhere => {
                let reference = config::Reference::parse(&model.plugin)?;
                let auth = model.registry_auth.as_ref();
                self.pulled.get(&reference, auth).await?
            }
        };
        artifact.expect(model.sha256.as_deref())
    }
}

/// What lies on this machine of a model's plugin when it is configured.
#[derive(Debug, Default)]
pub(super) enum Found {
    /// A component's file, or why it cannot be read.
    File(Result<Artifact, String>),
    /// Nothing that changes by itself: it is compiled in, or pinned by its digest.
    #[default]
    Elsewhere,
}

impl Found {
    /// Reads the file, if there is one.
    pub(super) fn of(model: &config::Model) -> Self {
        if model.is_file() && model.unavailable.is_none() {
            Self::File(Artifact::read(Path::new(&model.plugin)))
        } else {
            Self::Elsewhere
        }
    }

    /// A hash of everything that makes a backend what it is, the component's file
    /// included. Of the files of a local model it is their sizes and times.
    pub(super) fn fingerprint(&self, model: &config::Model) -> [u8; 32] {
        let config::Model {
            plugin,
            sha256,
            registry_auth,
            model_path,
            dtype,
            api_url,
            api_key,
            api_key_header,
            grants,
            allow_private_addresses,
            model_name,
            ..
        } = model;
        let mut hash = Sha256::new();
        hash.update(format!(
            "{plugin:?} {sha256:?} {model_path:?} {dtype:?} {api_url:?} {model_name:?} \
             {api_key_header:?} {grants:?} {allow_private_addresses} "
        ));
        hash.update(format!(
            "{:?} {} {:?} ",
            model.limits, model.settings, model.unavailable
        ));
        for secret in [api_key, registry_auth] {
            hash.update(secret.as_ref().map_or("", |secret| secret.expose_secret()));
            hash.update(" ");
        }
        if let Self::File(Ok(artifact)) = self {
            hash.update(artifact.digest());
        }
        let sources = match model_path {
            None => &[],
            Some(config::Sources::One(source)) => std::slice::from_ref(source),
            Some(config::Sources::Several(sources)) => sources,
        };
        for source in sources {
            hash.update(format!("{:?} ", stamps(Path::new(source))));
        }
        hash.finalize().into()
    }
}

/// How the names of a local model's files end; its folder may have others, such as a log.
const MODEL_FILES: [&str; 4] = ["gguf", "jinja", "json", "safetensors"];

/// The size and the time of a local model's file, or of each in its folder: to read them all
/// would take too long. None of what is not on this machine.
fn stamps(source: &Path) -> BTreeMap<PathBuf, (u64, Option<SystemTime>)> {
    let is_one = |path: &PathBuf| {
        let end = path.extension().and_then(|end| end.to_str());
        end.is_some_and(|end| MODEL_FILES.contains(&end))
    };
    let of_folder = std::fs::read_dir(source).into_iter().flatten();
    let of_folder = of_folder.filter_map(|entry| Some(entry.ok()?.path()));
    let of_folder = of_folder.filter(is_one);
    let stamp = |path: PathBuf| {
        let found = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some((path, (found.len(), found.modified().ok())))
    };
    of_folder
        .chain([source.to_owned()])
        .filter_map(stamp)
        .collect()
}

fn upstream(model: &config::Model) -> Result<Option<Upstream>, String> {
    let Some(url) = &model.api_url else {
        return Ok(None);
    };
    let parse = |field: &str, url: &str| {
        reqwest::Url::parse(url).map_err(|error| format!("{field}: {error}"))
    };
    let grants = model.grants.iter().map(|grant| parse("grants", grant));
    let mut upstream = Upstream::new(parse("api_url", url)?);
    upstream.secret = model.api_key.clone();
    upstream.secret_header = model
        .api_key_header
        .parse()
        .map_err(|error| format!("api_key_header: {error}"))?;
    upstream.grants = grants.collect::<Result<_, _>>()?;
    upstream.allow_private_addresses = model.allow_private_addresses;
    Ok(Some(upstream))
}

/// What the plugin may know of its configuration: no secrets.
fn settings(model: &config::Model) -> Settings {
    // for its metrics; a component has no use for it
    let name = (!model.is_component()).then(|| model.name.clone());
    let named = [
        ("name", name),
        ("dtype", model.dtype.clone()),
        ("api_url", model.api_url.clone()),
        ("model_name", model.model_name.clone()),
        (
            "model_path",
            model.model_path.as_ref().map(|sources| match sources {
                config::Sources::One(source) => source.clone(),
                config::Sources::Several(sources) => serde_json::json!(sources).to_string(),
            }),
        ),
    ];
    let more = model.settings.iter().map(|(name, value)| {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            other => serde_json::to_string(other).unwrap_or_default(),
        };
        (name.clone(), text)
    });
    let named = named
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    more.chain(named).collect()
}
