//! The built server, started as a user starts it: a process with a database
//! and a port of its own, killed when the test ends.

mod cable;
pub mod client;
mod database;
mod faults;
mod purse;
mod redis;
mod registry;
mod setup;
mod stripe;
mod upstream;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use cable::Cable;
pub use client::{Client, Events, Reply, leave};
pub use database::{Database, Scratch};
pub use purse::{Purse, nanos, text};
pub use redis::Redis;
pub use registry::Registry;
pub use setup::Setup;
pub use stripe::{FakeStripe, LocalStripe, Mood, STRIPE_KEY, free_port};
pub use upstream::{Act, Upstream};

/// Longer than anything that should happen takes, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The admin key of every test's server.
pub const ADMIN_KEY: &str = "admin-key-of-the-tests";
/// The built server, or another build of it that is to be tested.
pub static BINARY: LazyLock<String> = LazyLock::new(|| {
    let built = env!("CARGO_BIN_EXE_model-host");
    database::variable("MODEL_HOST_TEST_BINARY").unwrap_or_else(|| built.to_owned())
});

/// GPT-2 from the binary itself: quick to load, and what a newcomer gets.
pub const GPT2: &str = r#"
[[models]]
id = 1
name = "gpt2"
plugin = "gpt2"
model_path = "embedded"
"#;

/// Path of a component of this repository.
pub fn component(name: &str) -> String {
    format!(
        "{}/../plugins/{name}/{name}.wasm",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// The entry of a `lawgent-thinking` model with number 2 and this upstream.
pub fn lawgent(upstream: &str) -> String {
    let plugin = component("lawgent-thinking");
    format!(
        "[[models]]\nid = 2\nname = \"lawgent-thinking\"\nplugin = \"{plugin}\"\n\
         api_url = \"{upstream}\"\napi_key = \"sk-upstream-secret\"\nmodel_name = \"upstream\"\n"
    )
}

/// A server under test.
#[derive(Debug)]
pub struct Host {
    setup: Setup,
    dir: TempDir,
    child: Child,
    url: String,
    log: File,
    out: File,
}

impl Host {
    /// A server with GPT-2 alone.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server to be set up.
    pub fn builder() -> Setup {
        Setup::default()
    }

    async fn spawn(setup: Setup, dir: TempDir) -> Self {
        // not pipes, so that a line can be read here as soon as it is written there
        let [log, out] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        let child = setup
            .serve(dir.path())
            .stdout(out.try_clone().expect("a file"))
            .stderr(log.try_clone().expect("a file"))
            .spawn()
            .expect("the server starts");
        let mut this = Self {
            setup,
            dir,
            child,
            url: String::new(),
            log,
            out,
        };
        let started = Instant::now();
        this.url = loop {
            let log = this.log();
            if let Some(url) = log.lines().find_map(address) {
                break url;
            }
            if let Some(status) = this.child.try_wait().expect("a child") {
                panic!("the server ended with {status}: {log}");
            }
            assert!(
                started.elapsed() < PATIENCE,
                "the server does not listen: {log}"
            );
            pause().await;
        };
        this
    }

    /// Waits until the models that are loaded at start are.
    pub async fn ready(self) -> Self {
        let anyone = self.anyone();
        eventually("the server is ready", async || {
            anyone.get("/ready").await.status == 200
        })
        .await;
        self
    }

    /// Stops the server, if it runs, and starts it again on the same data.
    pub async fn restart(mut self) -> Self {
        self.child.kill().ok();
        self.child.wait().expect("a child");
        let (setup, dir) = (
            self.setup.clone(),
            std::mem::replace(&mut self.dir, TempDir::new().expect("a folder")),
        );
        Self::spawn(setup, dir).await
    }

    /// Runs another command of the binary on the same data; returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        let (status, said) = self.try_run(arguments);
        assert!(status.success(), "{said}");
        said
    }

    /// The same, whether it succeeds or not; with its errors if it does not.
    pub fn try_run(&self, arguments: &[&str]) -> (ExitStatus, String) {
        let mut command = self.setup.command(self.dir());
        let output = command.args(arguments).output().expect("it runs");
        let mut said = String::from_utf8(output.stdout).expect("text");
        if !output.status.success() {
            said += &String::from_utf8_lossy(&output.stderr);
        }
        (output.status, said)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder it runs in: `model-host.toml` and `data/`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its database on a server, for another server of it.
    pub fn scratch(&self) -> Arc<Scratch> {
        let scratch = self.setup.database.as_ref();
        Arc::clone(scratch.expect("it keeps everything in a file"))
    }

    /// Its database, by another way in.
    pub fn database(&self) -> Database {
        match &self.setup.database {
            Some(database) => Database::Server(database.url()),
            None => Database::File(self.dir().join("data/model-host.db")),
        }
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        written(&self.log)
    }

    /// What it wrote to standard output.
    pub fn out(&self) -> String {
        written(&self.out)
    }

    /// Replaces the configuration file, as editors do.
    pub fn write_config(&self, config: &str) {
        let new = self.dir().join("model-host.toml.new");
        std::fs::write(&new, config).expect("a file");
        std::fs::rename(new, self.dir().join("model-host.toml")).expect("a file");
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits until the process has ended.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "the server does not end: {}",
                self.log()
            );
            pause().await;
        }
    }

    /// Somebody without a key.
    pub fn anyone(&self) -> Client {
        Client::new(&self.url, None)
    }

    /// The operator.
    pub fn admin(&self) -> Client {
        Client::new(&self.url, Some(("x-admin-key", ADMIN_KEY.to_owned())))
    }

    /// A new customer with a key for all models and a high rate.
    pub async fn customer(&self) -> Client {
        self.customer_with(json!({ "rate_limit": 100_000 })).await
    }

    /// A new customer with a key; `more` are more fields of the key.
    pub async fn customer_with(&self, more: Value) -> Client {
        let admin = self.admin();
        static CUSTOMERS: AtomicUsize = AtomicUsize::new(1);
        let number = CUSTOMERS.fetch_add(1, Ordering::Relaxed);
        let email = format!("customer-{number}@example.com");
        let new = json!({ "name": "Customer", "email": email, "company": "Customer Inc" });
        admin.post("/customers", new).await.expect(201);
        let mut key = json!({ "customer_email": email, "name": "Key" });
        key.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().expect("an object"));
        let key = admin.post("/api/keys", key).await.expect(201);
        let text = key["key"].as_str().expect("a key").to_owned();
        Client::new(&self.url, Some(("x-api-key", text)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.url, self.log());
        }
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// When it does not in a long time.
#[track_caller]
pub fn eventually(what: &str, condition: impl AsyncFn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        while !condition().await {
            assert!(
                started.elapsed() < PATIENCE,
                "{caller}: not in time: {what}"
            );
            pause().await;
        }
    }
}

/// Waits until the hour does not end soon: for what is of an hour, a day or a month.
pub async fn before_the_hour() {
    #[expect(clippy::disallowed_methods, reason = "servers read this clock")]
    let now = || time::OffsetDateTime::now_utc();
    let is_late = || now().minute() == 59 && now().second() >= 15;
    eventually("the next hour begins", async || !is_late()).await;
}

/// Between two looks at something that is polled with a deadline.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn address(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    line["message"]
        .as_str()?
        .strip_prefix("serving ")
        .map(str::to_owned)
}

/// The lines that are in a file.
fn written(file: &File) -> String {
    let length = file.metadata().expect("a file").len();
    let mut text = vec![0; usize::try_from(length).expect("a size")];
    file.read_exact_at(&mut text, 0).expect("a file");
    let end = text.iter().rposition(|byte| *byte == b'\n');
    text.truncate(end.map_or(0, |end| end + 1));
    String::from_utf8_lossy(&text).into_owned()
}
