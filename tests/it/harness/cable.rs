//! A cable between a server and its database that the test can cut.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way to a PostgreSQL server; gone when this is dropped.
#[derive(Debug)]
pub struct Cable {
    url: String,
    is_whole: Arc<watch::Sender<bool>>,
}

impl Cable {
    /// One to the database with this URL.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").to_string();
        let (_, rest) = url.split_once('@').expect("a URL with a user");
        let (server, _) = rest.split_once('/').expect("a URL with a database");
        let server = server.to_owned();
        let is_whole = Arc::new(watch::Sender::new(true));
        let state = is_whole.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), state.clone()));
            }
        });
        Self {
            url: url.replace(rest.split_once('/').expect("checked").0, &own),
            is_whole,
        }
    }

    /// The same database, by this cable.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Ends all connections, and lets none through.
    pub fn cut(&self) {
        self.is_whole.send_replace(false);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.is_whole.send_replace(true);
    }
}

async fn carry(mut client: TcpStream, server: String, mut is_whole: watch::Receiver<bool>) {
    if !*is_whole.borrow_and_update() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = is_whole.changed() => {}
    }
}
