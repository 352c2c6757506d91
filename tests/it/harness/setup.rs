//! How a server under test is set up and started.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::{ADMIN_KEY, BINARY, GPT2, Host, Scratch};

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Setup {
    config: String,
    env: Vec<(String, String)>,
    files: Vec<(&'static str, Vec<u8>)>,
    arguments: Vec<String>,
    ulimit: Option<&'static str>,
    has_admin_key: bool,
    has_free_port: bool,
    is_in_file: bool,
    pub(super) database: Option<Arc<Scratch>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: GPT2.to_owned(),
            env: Vec::new(),
            files: Vec::new(),
            arguments: Vec::new(),
            ulimit: None,
            has_admin_key: true,
            has_free_port: true,
            is_in_file: false,
            database: None,
        }
    }
}

impl Setup {
    /// Keeps everything in this database on a server.
    pub fn on(mut self, database: Arc<Scratch>) -> Self {
        self.database = Some(database);
        self
    }

    /// Keeps everything in a file, whatever database the tests are to run on.
    pub fn in_file(mut self) -> Self {
        self.is_in_file = true;
        self
    }

    /// Uses this as the configuration file.
    pub fn config(mut self, config: impl Into<String>) -> Self {
        self.config = config.into();
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Puts a file into the server's folder.
    pub fn file(mut self, name: &'static str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name, content.into()));
        self
    }

    /// Adds an argument of the command line.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a limit of the process, by these arguments of `ulimit`.
    pub fn ulimit(mut self, arguments: &'static str) -> Self {
        self.ulimit = Some(arguments);
        self
    }

    /// Lets the server make its admin key.
    pub fn without_admin_key(mut self) -> Self {
        self.has_admin_key = false;
        self
    }

    /// Leaves the address to the configuration, rather than take a free port.
    pub fn listening_as_configured(mut self) -> Self {
        self.has_free_port = false;
        self
    }

    /// Starts the server and waits until it listens.
    pub async fn start(mut self) -> Host {
        if self.database.is_none() && !self.is_in_file {
            self.database = Scratch::if_asked().map(Arc::new);
        }
        let dir = TempDir::new().expect("a folder");
        self.write(dir.path());
        Host::spawn(self, dir).await
    }

    /// Starts the server, which must refuse to start: its status and what it says.
    pub fn refused(self) -> (ExitStatus, String) {
        let dir = TempDir::new().expect("a folder");
        self.write(dir.path());
        let output = self.serve(dir.path()).output().expect("it runs");
        (
            output.status,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    fn write(&self, dir: &Path) {
        std::fs::write(dir.join("model-host.toml"), &self.config).expect("a file");
        for (name, content) in &self.files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, content).expect("a file");
        }
    }

    /// A command of the binary in the server's folder and environment.
    pub(super) fn command(&self, dir: &Path) -> Command {
        let mut command = match self.ulimit {
            Some(arguments) => {
                let limited = format!("ulimit {arguments} && exec \"$0\" \"$@\"");
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &limited, &BINARY]);
                shell
            }
            None => Command::new(&*BINARY),
        };
        command
            .current_dir(dir)
            .env_clear()
            .env("MODEL_HOST_DATA_DIR", dir.join("data"));
        command
            .env("MODEL_HOST_LOG", "info,model_host=debug")
            .env("HF_HOME", dir.join("hub"));
        if self.has_admin_key {
            command.env("MODEL_HOST_ADMIN_KEY", ADMIN_KEY);
        }
        if let Some(database) = &self.database {
            command.env("DATABASE_URL", database.url());
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The command that serves.
    pub(super) fn serve(&self, dir: &Path) -> Command {
        let mut command = self.command(dir);
        command.arg("serve");
        if self.has_free_port {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(&self.arguments).stdin(Stdio::null());
        command
    }
}
