//! Components from OCI registries: pulled once, kept by their digest.
//!
//! A reference pins a manifest, the manifest pins the component: whatever a registry
//! answers and whatever lies in the folder, only bytes with those digests are taken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::{IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::Reference;

use super::artifact::{Artifact, sha256};

/// The media type of a component's layer.
const WASM: &str = "application/wasm";
/// The largest component, in bytes.
const SIZE_LIMIT: u64 = 256 << 20;
/// How long a registry may take to be reached, and to go on answering.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a manifest may take in all.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a component may take in all.
const PULL_TIMEOUT: Duration = Duration::from_secs(600);

/// The components that were pulled, in a folder.
#[derive(Clone, Debug)]
pub struct Pulled {
    folder: PathBuf,
}

impl Pulled {
    /// Components kept in `folder`, which is made when the first of them comes.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The component behind `reference`, from the registry if it is not kept yet.
    /// `auth` is `user:password`.
    ///
    /// # Errors
    /// With what to tell the operator.
    pub async fn get(
        &self,
        reference: &Reference,
        auth: Option<&SecretString>,
    ) -> Result<Artifact, String> {
        let Reference {
            registry,
            repository,
            digest,
        } = reference;
        let name = format!("oci://{registry}/{repository}@{digest}");
        let found = timeout(PULL_TIMEOUT, self.find(reference, auth)).await;
        let found = found.unwrap_or_else(|_| Err("the registry took too long".to_owned()));
        let bytes = found.map_err(|why| format!("{name}: {why}"))?;
        Ok(Artifact::new(name, bytes))
    }

    async fn find(
        &self,
        reference: &Reference,
        auth: Option<&SecretString>,
    ) -> Result<Vec<u8>, String> {
        let mut remote = None;
        let manifest = match self.kept(&reference.digest).await {
            Some(manifest) => manifest,
            None => {
                let at = Remote::log_in(reference, auth).await?;
                let manifest = at.manifest().await?;
                remote = Some(at);
                self.keep(&reference.digest, manifest).await?
            }
        };
        let digest = component_of(&manifest)?;
        if let Some(component) = self.kept(&digest).await {
            return Ok(component);
        }
        let remote = match remote {
            Some(remote) => remote,
            None => Remote::log_in(reference, auth).await?,
        };
        let component = remote.blob(&digest).await?;
        self.keep(&digest, component).await
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(digest.replace(':', "-"))
    }

    /// What is kept under a digest, if it has that digest.
    async fn kept(&self, digest: &str) -> Option<Vec<u8>> {
        let (path, digest) = (self.path(digest), digest.to_owned());
        let reading = tokio::task::spawn_blocking(move || {
            let bytes = std::fs::read(path).ok()?;
            check(&bytes, &digest).is_ok().then_some(bytes)
        });
        reading.await.ok()?
    }

    /// Keeps what a registry sent, if it has that digest.
    async fn keep(&self, digest: &str, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let (path, digest) = (self.path(digest), digest.to_owned());
        let writing = tokio::task::spawn_blocking(move || {
            check(&bytes, &digest)?;
            write(&path, &bytes).map_err(|error| format!("cannot keep it: {error}"))?;
            Ok(bytes)
        });
        writing.await.map_err(|error| error.to_string())?
    }
}

/// A registry that lets its component be read.
struct Remote {
    client: Client,
    image: oci_client::Reference,
    auth: RegistryAuth,
}

impl Remote {
    async fn log_in(reference: &Reference, auth: Option<&SecretString>) -> Result<Self, String> {
        let Reference {
            registry,
            repository,
            digest,
        } = reference.clone();
        let protocol = if is_this_machine(&registry) {
            ClientProtocol::HttpsExcept(vec![registry.clone()])
        } else {
            ClientProtocol::Https
        };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(PATIENCE),
            read_timeout: Some(PATIENCE),
            user_agent: concat!("model-host/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let auth = match auth.and_then(|auth| auth.expose_secret().split_once(':')) {
            Some((user, password)) => RegistryAuth::Basic(user.to_owned(), password.to_owned()),
            None => RegistryAuth::Anonymous,
        };
        let client = Client::try_from(config).map_err(|error| refusal(&error))?;
        let image = oci_client::Reference::with_digest(registry, repository, digest);
        client
            .auth(&image, &auth, RegistryOperation::Pull)
            .await
            .map_err(|error| refusal(&error))?;
        Ok(Self {
            client,
            image,
            auth,
        })
    }

    async fn manifest(&self) -> Result<Vec<u8>, String> {
        let types = [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
        let pulling = self
            .client
            .pull_manifest_raw(&self.image, &self.auth, &types);
        let (manifest, _) = timeout(MANIFEST_TIMEOUT, pulling)
            .await
            .map_err(|_| "the registry took too long".to_owned())?
            .map_err(|error| refusal(&error))?;
        Ok(manifest.into())
    }

    async fn blob(&self, digest: &str) -> Result<Vec<u8>, String> {
        let mut pieces = self
            .client
            .pull_blob_stream(&self.image, digest)
            .await
            .map_err(|error| refusal(&error))?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| refusal(&error))?;
            // counted here, whatever the registry or the manifest says of the size
            if (bytes.len() + piece.len()) as u64 > SIZE_LIMIT {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

/// The digest of the component that a manifest is of.
fn component_of(manifest: &[u8]) -> Result<String, String> {
    let manifest: OciImageManifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("its manifest is not that of a component: {error}"))?;
    let mut components = manifest
        .layers
        .iter()
        .filter(|layer| layer.media_type == WASM);
    match (components.next(), components.next()) {
        (Some(layer), None) if layer.size > SIZE_LIMIT as i64 => Err(too_large()),
        (Some(layer), None) if !layer.digest.starts_with("sha256:") => {
            Err("the digest of its component is no sha256".to_owned())
        }
        (Some(layer), None) => Ok(layer.digest.clone()),
        _ => Err(format!("its manifest must have one layer of type {WASM}")),
    }
}

fn check(bytes: &[u8], digest: &str) -> Result<(), String> {
    let found = format!("sha256:{}", sha256(bytes));
    if found == digest {
        return Ok(());
    }
    Err(format!("the registry sent {found} instead of {digest}"))
}

/// Complete or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(Uuid::now_v7().to_string());
    std::fs::write(&part, bytes)?;
    std::fs::rename(part, path)
}

/// Whether a registry may be asked without TLS.
fn is_this_machine(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    ["localhost", "127.0.0.1", "[::1]"].contains(&host)
}

fn too_large() -> String {
    format!("it is larger than {} MiB", SIZE_LIMIT >> 20)
}

/// What went wrong at the registry, causes included.
fn refusal(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
