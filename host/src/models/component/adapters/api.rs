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
}

/// An API that answers each connection's one request by the next script, the last
/// of which it repeats, and then closes the connection.
pub(super) struct Api {
    pub(super) url: String,
    pub(super) requests: mpsc::Receiver<(String, Value)>,
    pub(super) held: Arc<Semaphore>,
    pub(super) gone: mpsc::Receiver<()>,
}

impl Api {
    pub(super) async fn start(scripts: impl Into<VecDeque<Vec<Step>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let scripts = Mutex::new(scripts.into());
        let held = Arc::new(Semaphore::new(0));
        let holding = Arc::clone(&held);
        let (sender, requests) = mpsc::channel(64);
        let (leaving, gone) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = {
                    let mut scripts = scripts.lock().unwrap();
                    let next = scripts.pop_front().unwrap();
                    if scripts.is_empty() {
                        scripts.push_back(next.clone());
                    }
                    next
                };
                let (sender, leaving) = (sender.clone(), leaving.clone());
                let holding = Arc::clone(&holding);
                tokio::spawn(async move {
                    play(stream, script, &sender, &holding).await;
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

async fn play(
    mut stream: TcpStream,
    script: Vec<Step>,
    requests: &mpsc::Sender<(String, Value)>,
    held: &Semaphore,
) {
    stream.set_nodelay(true).unwrap();
    let mut bytes = Vec::new();
    let request = loop {
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if let Ok(body) = serde_json::from_str(body) {
            break (head.to_lowercase(), body);
        }
    };
    requests.send(request).await.unwrap();
    for step in script {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Step::Hold => tokio::select! {
                permit = held.acquire() => permit.unwrap().forget(),
                // nothing more is asked on this connection
                _ = stream.read_u8() => return,
            },
        }
    }
}

pub(super) fn answer(status: u16, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} So\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    vec![Step::Send((head + body).into_bytes())]
}

/// The beginning of a streamed answer, with each piece in a chunk of its own.
pub(super) fn begun<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Step> {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\
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
    steps.push(Step::Send(b"0\r\n\r\n".into()));
    steps
}
