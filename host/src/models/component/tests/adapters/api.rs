//! An API by a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

/// What an API does after it has read a request, one after the other.
#[derive(Clone)]
pub(super) enum Step {
    Send(Vec<u8>),
    /// Waits for the test.
    Hold,
    /// Leaves the client enough turns to read what was sent.
    Yield,
    /// Closes the connection.
    Cut,
}

/// A request as it came.
pub(super) struct Asked {
    /// In which of the connections.
    pub(super) connection: usize,
    /// In lower case.
    pub(super) head: String,
    pub(super) body: Value,
}

/// An API that answers each request by the next script, the last of which it
/// repeats.
pub(super) struct Api {
    pub(super) url: String,
    pub(super) requests: mpsc::Receiver<Asked>,
    /// Lets it go on where it holds.
    pub(super) held: Arc<Semaphore>,
    /// A connection has ended.
    pub(super) gone: mpsc::Receiver<()>,
}

/// The API's side, shared by its connections.
#[derive(Clone)]
struct Player {
    scripts: Arc<Mutex<VecDeque<Vec<Step>>>>,
    requests: mpsc::Sender<Asked>,
    held: Arc<Semaphore>,
}

impl Api {
    pub(super) async fn start(scripts: impl Into<VecDeque<Vec<Step>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel(64);
        let (leaving, gone) = mpsc::channel(64);
        let player = Player {
            scripts: Arc::new(Mutex::new(scripts.into())),
            requests: sender,
            held: Arc::new(Semaphore::new(0)),
        };
        let held = Arc::clone(&player.held);
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (player, leaving) = (player.clone(), leaving.clone());
                tokio::spawn(async move {
                    player.serve(stream, connection).await;
                    let _ = leaving.send(()).await;
                });
            }
        });
        Self {
            url,
            requests,
            held,
            gone,
        }
    }
}

impl Player {
    /// Answers the requests of a connection until it ends.
    async fn serve(&self, mut stream: TcpStream, connection: usize) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        loop {
            let (head, body) = request(&mut stream).await?;
            let asked = Asked {
                connection,
                head,
                body,
            };
            self.requests.send(asked).await.ok()?;
            for step in self.next_script() {
                match step {
                    Step::Send(bytes) => stream.write_all(&bytes).await.ok()?,
                    Step::Hold => tokio::select! {
                        permit = self.held.acquire() => permit.unwrap().forget(),
                        // nothing is asked before the answer's end, so this is the client's
                        _ = stream.read_u8() => return None,
                    },
                    Step::Yield => {
                        for _ in 0..1000 {
                            tokio::task::yield_now().await;
                        }
                    }
                    Step::Cut => return None,
                }
            }
        }
    }

    fn next_script(&self) -> Vec<Step> {
        let mut scripts = self.scripts.lock().unwrap();
        let next = scripts.pop_front().unwrap();
        if scripts.is_empty() {
            scripts.push_back(next.clone());
        }
        next
    }
}

async fn request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut bytes).await {
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if let Ok(body) = serde_json::from_str(body) {
            return Some((head.to_lowercase(), body));
        }
    }
    None
}

pub(super) fn answer(status: u16, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} So\r\ncontent-length: {length}\r\n{headers}\r\n");
    vec![Step::Send((head + body).into_bytes())]
}

/// The beginning of a streamed answer, with each piece in a chunk of its own.
pub(super) fn begun<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Step> {
    let head = "HTTP/1.1 200 OK\r\n\
        content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut steps = vec![Step::Send(head.into())];
    for piece in pieces {
        let size = format!("{:x}\r\n", piece.len()).into_bytes();
        steps.push(Step::Send([&size, piece, b"\r\n"].concat()));
    }
    steps
}

pub(super) fn streamed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Step> {
    let mut steps = begun(pieces);
    // many servers send the end apart
    steps.push(Step::Yield);
    steps.push(Step::Send(b"0\r\n\r\n".into()));
    steps
}

/// The same with all that is sent in one piece.
pub(super) fn at_once(steps: Vec<Step>) -> Vec<Step> {
    let sent = steps.into_iter().filter_map(|step| match step {
        Step::Send(bytes) => Some(bytes),
        Step::Hold | Step::Yield | Step::Cut => None,
    });
    vec![Step::Send(sent.flatten().collect())]
}
