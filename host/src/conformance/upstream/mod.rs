//! An API that plays a script in the format it is asked in. It writes HTTP by
//! itself, since most of what it is for is what no HTTP server does: stop in the
//! middle, cut a character in two, tell when its client has left.

mod steps;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::dialect::{Counts, Dialect};
use steps::{Step, steps};

pub use steps::words;

/// The most bytes of a request.
const REQUEST_LIMIT: usize = 1 << 20;

/// What to do with every request, until another script is played.
#[derive(Clone, Debug)]
pub struct Script {
    /// The answer.
    pub reply: Reply,
    /// How it is cut into pieces.
    pub pieces: Pieces,
    /// What goes wrong.
    pub fault: Option<Fault>,
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These words, a record each.
    Words(Vec<String>, Option<Counts>),
    /// The prompt, a word a record.
    Echo,
    /// A call of the tool of this name with these arguments.
    Call(&'static str, &'static str),
    /// The key that the request came with.
    Secret,
    /// An error with the key in its message.
    SecretRefusal,
    /// An error of this status, with so many seconds in `Retry-After`.
    Refusal(u16, Option<u32>),
    /// Status 200 with this media type and body.
    Raw(&'static str, &'static str),
}

/// How an answer is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// All in one.
    One,
    /// A record each.
    Records,
    /// A byte each.
    Bytes,
    /// Inside of every character that has more than one byte, and nowhere else.
    InsideCharacters,
    /// A record each, with carriage returns, comments and unknown fields between.
    Dressed,
}

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is sent until [`Upstream::release`].
    Silence,
    /// The rest after the first word, or the second half, is held back until
    /// [`Upstream::release`].
    Hold,
    /// There the connection is cut.
    Cut,
    /// There the answer ends, as if it was whole.
    Short,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its format, if it is known.
    pub dialect: Option<Dialect>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; null if it is no JSON.
    pub body: Value,
}

/// What goes on, counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Connections accepted.
    connections: usize,
    /// Answers that were held back.
    held: usize,
    /// Clients that left while their answer was held back.
    left: usize,
    /// Times that what is held back was released.
    released: usize,
}

/// The running upstream; it ends when it is dropped.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    counters: watch::Sender<Counters>,
}

impl Upstream {
    /// Starts one on a port of this machine.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let script = Script {
            reply: Reply::Echo,
            pieces: Pieces::Records,
            fault: None,
        };
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            seen: Mutex::default(),
            counters: watch::Sender::default(),
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            address,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    /// Its base URL. Any path below it will do.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Plays another script; what was seen until now is forgotten.
    pub fn play(&self, reply: Reply, pieces: Pieces, fault: Option<Fault>) {
        *self.shared.script.lock() = Script {
            reply,
            pieces,
            fault,
        };
        self.shared.seen.lock().clear();
    }

    /// The requests since the last script.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.counters.borrow().connections
    }

    /// Sends what is held back.
    pub fn release(&self) {
        self.count(|counters| counters.released += 1);
    }

    /// A look at what happens from now on.
    pub fn watch(&self) -> Watch {
        let counters = self.shared.counters.subscribe();
        let before = *counters.borrow();
        Watch { counters, before }
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.shared.counters.send_modify(change);
    }
}

/// What happens at the upstream since the watch began.
#[derive(Debug)]
pub struct Watch {
    counters: watch::Receiver<Counters>,
    before: Counters,
}

impl Watch {
    /// Waits until an answer is held back.
    pub async fn held(&mut self) {
        let before = self.before.held;
        // the sender lives as long as the upstream
        let _ = self.counters.wait_for(|now| now.held > before).await;
    }

    /// Waits until a client has left while its answer was held back.
    pub async fn left(&mut self) {
        let before = self.before.left;
        let _ = self.counters.wait_for(|now| now.left > before).await;
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared
            .counters
            .send_modify(|counters| counters.connections += 1);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // a client that leaves is what many checks are about
            let _ = converse(stream, &shared).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers the requests of one connection.
async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some(seen) = read(&mut stream).await? {
        shared.seen.lock().push(seen.clone());
        let script = shared.script.lock().clone();
        let released = shared.counters.borrow().released;
        for step in steps(&script, &seen) {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Hold => hold(&mut stream, shared, released).await?,
                Step::Cut => return stream.shutdown().await,
            }
        }
    }
    Ok(())
}

/// Waits until what is held back may go on.
///
/// # Errors
/// When the client leaves before.
async fn hold(stream: &mut TcpStream, shared: &Shared, released: usize) -> io::Result<()> {
    let mut counters = shared.counters.subscribe();
    shared.counters.send_modify(|counters| counters.held += 1);
    tokio::select! {
        _ = counters.wait_for(|now| now.released > released) => Ok(()),
        read = stream.read_u8() => {
            shared.counters.send_modify(|counters| counters.left += 1);
            Err(read.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
        }
    }
}

/// The next request, if the client sends one.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Seen>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() > REQUEST_LIMIT || stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let headers: Vec<_> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    // the host sends bodies whole, so their length is always known
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if body.len() > REQUEST_LIMIT || stream.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Some(Seen {
        dialect: Dialect::of(&headers, &body),
        headers,
        body,
    }))
}

impl Seen {
    /// The key that came with it, or nothing.
    pub fn secret(&self) -> String {
        let name = |name: &str| matches!(name, "authorization" | "x-api-key" | "api-key");
        let found = self.headers.iter().find(|(header, _)| name(header));
        found.map_or(String::new(), |(_, value)| value.replace("Bearer ", ""))
    }
}
