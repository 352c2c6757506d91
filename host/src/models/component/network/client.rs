//! The HTTP client of a gate: hyper's own, over TLS. What reqwest puts around it (redirects,
//! proxies, retries) would lead past the grant or is of no use here, and has its price.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tower::timeout::TimeoutLayer;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, Service};

/// How long a connection may take to be made, TLS included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept; many servers close theirs after 60 s. However
/// many there are: requests that come in bursts would make the others anew each time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How long nothing is heard of the other side before it is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

pub(super) type Client = legacy::Client<Connector, Full<Bytes>>;

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// A client that asks `addresses` where a name leads, and keeps its connections. Each of them
/// is made within `timeout`.
///
/// # Errors
/// When the certificates that this system trusts cannot be used.
pub(super) fn client<A>(addresses: A, timeout: Duration) -> Result<Client, rustls::Error>
where
    A: Service<Name, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
    A::Response: Iterator<Item = SocketAddr>,
{
    let mut tcp = HttpConnector::new_with_resolver(addresses);
    // the connector for TLS, which takes both, is above it
    tcp.enforce_http(false);
    // each address has its part of it, so that one which says nothing hides no other
    tcp.set_connect_timeout(Some(timeout * 4 / 5));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let tls = HttpsConnectorBuilder::new()
        .try_with_platform_verifier()?
        .https_or_http()
        // with HTTP/2 all requests to an upstream would share one connection: those whose clients
        // read nothing would take its window from all others, and what its server bounds would wait
        .enable_http1()
        .wrap_connector(tcp);
    let connector = TimeoutLayer::new(timeout).layer(tls);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(Connector::new(connector)))
}
