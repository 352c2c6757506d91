//! A cable between a server and its database that the test can cut.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way to a PostgreSQL server; gone when this is dropped.
#[derive(Debug)]
pub struct Cable {
    url: String,
    state: Arc<watch::Sender<State>>,
    /// How often it was frozen.
    freezes: Arc<watch::Sender<u32>>,
    loses: Arc<Loses>,
}

/// What of what is asked does not get an answer.
#[derive(Debug, Default)]
struct Loses {
    a_commit: AtomicBool,
    begins: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    Cut,
    Stalled,
}

impl Cable {
    /// One to the database with this URL.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").to_string();
        let (_, rest) = url.split_once('@').expect("a URL with a user");
        let (server, _) = rest.split_once('/').expect("a URL with a database");
        let server = server.to_owned();
        let state = Arc::new(watch::Sender::new(State::Whole));
        let freezes = Arc::new(watch::Sender::new(0));
        let (seen, frozen) = (state.subscribe(), freezes.subscribe());
        let loses = Arc::<Loses>::default();
        let lost = Arc::clone(&loses);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(
                    client,
                    server.clone(),
                    seen.clone(),
                    frozen.clone(),
                    Arc::clone(&lost),
                ));
            }
        });
        Self {
            url: url.replace(rest.split_once('/').expect("checked").0, &own),
            state,
            freezes,
            loses,
        }
    }

    /// The same database, by this cable.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Ends all connections, and lets none through.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Ends all connections, and has new ones wait until it is mended.
    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    /// Has all connections say nothing any more, without an end; new ones are whole.
    pub fn freeze(&self) {
        self.freezes.send_modify(|freezes| *freezes += 1);
    }

    /// Ends the connection of the next commit, which the server gets, before it is confirmed.
    pub fn lose_a_commit(&self) {
        self.loses.a_commit.store(true, Ordering::Release);
    }

    /// Has each connection on which a transaction is to begin say nothing any more, or not.
    pub fn lose_begins(&self, does: bool) {
        self.loses.begins.store(does, Ordering::Release);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
    }
}

async fn carry(
    mut client: TcpStream,
    server: String,
    mut state: watch::Receiver<State>,
    mut freezes: watch::Receiver<u32>,
    loses: Arc<Loses>,
) {
    let waited = state.wait_for(|state| *state != State::Stalled).await;
    if !waited.is_ok_and(|state| *state == State::Whole) {
        return;
    }
    let before = *freezes.borrow();
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let is_frozen = tokio::select! {
        biased;
        _ = state.wait_for(|state| *state != State::Whole) => return,
        _ = freezes.wait_for(|freezes| *freezes > before) => true,
        _ = ask(&mut from_client, &mut to_server, &loses) => false,
        _ = tokio::io::copy(&mut from_server, &mut to_client) => false,
    };
    if is_frozen {
        let ended = state.wait_for(|state| *state != State::Whole).await;
        drop(ended);
        return;
    }
    // what was asked last is done, and nobody told
    drop(client);
    let mut untold = Vec::new();
    server.shutdown().await.ok();
    server.read_to_end(&mut untold).await.ok();
}

/// Passes on what the client asks, to the end or to a commit that is to be lost.
async fn ask(
    client: &mut ReadHalf<'_>,
    server: &mut WriteHalf<'_>,
    loses: &Loses,
) -> io::Result<()> {
    let mut asked = vec![0; 64 << 10];
    loop {
        let length = client.read(&mut asked).await?;
        if length == 0 {
            return Ok(());
        }
        let says = |what: &[u8]| asked[..length].windows(what.len()).any(|word| word == what);
        if says(b"BEGIN") && loses.begins.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        server.write_all(&asked[..length]).await?;
        if says(b"COMMIT") && loses.a_commit.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
    }
}
