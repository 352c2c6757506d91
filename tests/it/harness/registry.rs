//! A real registry of OCI artifacts, Debian's docker-registry.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{eventually, free_port};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The password of its user, as bcrypt hashes it.
const PASSWORD: (&str, &str) = (
    "pass-word",
    "$2b$04$abcdefghijklmnopqrstuuudBIGi88QUaH8UOst3i3n1jdKYDf0WW",
);

/// A running registry; it is killed when the test ends.
#[derive(Debug)]
pub struct Registry {
    child: Mutex<Child>,
    dir: TempDir,
    address: String,
    login: Option<(&'static str, &'static str)>,
}

impl Registry {
    /// Starts one that is empty and open to anybody.
    pub async fn start() -> Self {
        Self::start_as(None).await
    }

    /// Starts one that is empty and wants this user; of passwords it knows one.
    pub async fn start_with_password(user: &'static str, password: &'static str) -> Self {
        assert_eq!(password, PASSWORD.0, "the one with a hash here");
        Self::start_as(Some((user, password))).await
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "tests/run says where it installed the registry"
    )]
    async fn start_as(login: Option<(&'static str, &'static str)>) -> Self {
        let program = std::env::var("MODEL_HOST_TEST_REGISTRY")
            .expect("MODEL_HOST_TEST_REGISTRY is not set: run the tests by tests/run");
        let dir = TempDir::new().expect("a folder");
        let address = format!("127.0.0.1:{}", free_port());
        let mut config = json!({
            "version": 0.1,
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") } },
            "http": { "addr": address },
        });
        if let Some((user, _)) = login {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, format!("{user}:{}\n", PASSWORD.1)).expect("a file");
            config["auth"] = json!({ "htpasswd": { "realm": "tests", "path": file } });
        }
        // its configuration is YAML, of which JSON is a part
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config.to_string()).expect("a file");
        let child = Command::new(program)
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).expect("a file"))
            .spawn()
            .expect("the registry starts");
        let this = Self {
            child: Mutex::new(child),
            dir,
            address,
            login,
        };
        eventually("the registry answers", async || {
            let asked = this.client().get(this.url("")).send().await;
            asked.is_ok()
        })
        .await;
        this
    }

    /// Puts a layer of this type there; returns the reference that pins it.
    pub async fn push(&self, repository: &str, bytes: &[u8], media_type: &str) -> String {
        let (layer, config) = (self.blob(repository, bytes), self.blob(repository, b"{}"));
        let (layer, config) = (layer.await, config.await);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": config, "size": 2 },
            "layers": [{ "mediaType": media_type, "digest": layer, "size": bytes.len() }],
        })
        .to_string();
        let digest = digest(manifest.as_bytes());
        let url = self.url(&format!("{repository}/manifests/{digest}"));
        let put = self.client().put(url).header("content-type", MANIFEST);
        self.expect(put.body(manifest), StatusCode::CREATED).await;
        format!("oci://{}/{repository}@{digest}", self.address)
    }

    async fn blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let begin = self
            .client()
            .post(self.url(&format!("{repository}/blobs/uploads/")));
        let begun = self.expect(begin, StatusCode::ACCEPTED).await;
        let place = begun.headers()["location"].to_str().expect("text");
        let put = self.client().put(format!("{place}&digest={digest}"));
        self.expect(put.body(bytes.to_vec()), StatusCode::CREATED)
            .await;
        digest
    }

    /// Replaces a blob by another of the same length, behind the registry's back.
    pub fn tamper(&self, bytes: &[u8]) {
        let digest = digest(bytes);
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        let file: PathBuf = blobs.join(&hex[..2]).join(hex).join("data");
        assert!(Path::exists(&file), "{}", file.display());
        let mut other = bytes.to_vec();
        other[bytes.len() / 2] ^= 1;
        std::fs::write(file, other).expect("a file");
    }

    /// Ends it.
    pub fn stop(&self) {
        let mut child = self.child.lock().expect("no panic");
        child.kill().ok();
        child.wait().ok();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.address)
    }

    fn client(&self) -> Client {
        // harmless when another test was first
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        Client::builder().no_proxy().build().expect("a client")
    }

    async fn expect(&self, request: RequestBuilder, status: StatusCode) -> reqwest::Response {
        let request = match self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), status, "{response:?}");
        response
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
