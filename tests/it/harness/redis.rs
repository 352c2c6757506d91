//! A real Redis, Debian's, that can be stopped and come back.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{eventually, free_port};

/// A running Redis; it is killed when the test ends.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Redis {
    /// Starts one that is empty.
    pub async fn start() -> Self {
        let (port, dir) = (free_port(), TempDir::new().expect("a folder"));
        let child = Self::spawn(port, &dir);
        let this = Self { child, port, dir };
        this.answers().await;
        this
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "tests/run says where it installed Redis"
    )]
    fn spawn(port: u16, dir: &TempDir) -> Child {
        let program = std::env::var("MODEL_HOST_TEST_REDIS")
            .expect("MODEL_HOST_TEST_REDIS is not set: run the tests by tests/run");
        Command::new(program)
            .args(["--bind", "127.0.0.1", "--save", "", "--port"])
            .arg(port.to_string())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Redis starts")
    }

    async fn answers(&self) {
        eventually("Redis listens", async || {
            TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it, and all that it knew.
    pub fn stop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Lets it say nothing more, though its connections stay; or go on.
    pub fn hang(&self, is_hung: bool) {
        let signal = if is_hung { "STOP" } else { "CONT" };
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Lets nobody in from now on but with this password.
    pub async fn set_password(&self, password: &str) {
        let answer = self
            .ask(&format!("CONFIG SET requirepass {password}"))
            .await;
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Ends connections that are idle, from now on, and waits until none is left.
    pub async fn end_idle(&self) {
        let answer = self.ask("CONFIG SET timeout 1").await;
        assert!(answer.starts_with("+OK"), "{answer}");
        eventually("only this one is left", async || {
            let clients = self.ask("INFO clients").await;
            clients.contains("connected_clients:1\r")
        })
        .await;
    }

    /// What it answers to a command.
    async fn ask(&self, command: &str) -> String {
        let connected = TcpStream::connect(("127.0.0.1", self.port)).await;
        let mut connection = connected.expect("a connection");
        let commands = format!("{command}\r\nQUIT\r\n");
        let sent = connection.write_all(commands.as_bytes()).await;
        sent.expect("sent");
        let mut answer = String::new();
        let read = connection.read_to_string(&mut answer).await;
        read.expect("an answer");
        answer
    }

    /// Starts it again, empty, where it was.
    pub async fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.dir);
        self.answers().await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
