//! A real Redis, Debian's, that can be stopped and come back.

use std::process::{Child, Command, Stdio};

use redis::{AsyncConnectionConfig, FromRedisValue};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{PATIENCE, eventually, free_port};

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

    /// What it answers to a command.
    pub async fn answer<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("a URL");
        let patient = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&patient);
        let connection = connection.await;
        let mut connection = connection.expect("a connection");
        let mut asked = redis::Cmd::new();
        for part in command {
            asked.arg(part);
        }
        let answer = asked.query_async(&mut connection).await;
        answer.expect("an answer")
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
        let set = ["CONFIG", "SET", "requirepass", password];
        self.answer::<()>(&set).await;
    }

    /// Ends connections that are idle, from now on, and waits until none is left.
    pub async fn end_idle(&self) {
        self.answer::<()>(&["CONFIG", "SET", "timeout", "1"]).await;
        eventually("only this one is left", async || {
            let clients: String = self.answer(&["INFO", "clients"]).await;
            clients.contains("connected_clients:1\r")
        })
        .await;
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
