//! Connections: what `axum::serve` does, with a bound on the time in which a client
//! sends the head of a request. Without one, clients that send a byte now and then
//! hold connections for as long as they like.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Version, header};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{ServiceExt, service_fn};

use super::socket::Socket;
use super::unread::{Answer, Streams, while_read};
use super::unwanted::{Sent, Unwanted};
use crate::config::Requests;

/// Until connections are accepted again when there is no room for one.
const NO_ROOM: Duration = Duration::from_secs(1);
/// Longest head on HTTP/1, and what of one connection waits there to be read or written.
const BUFFER: usize = 64 << 10;
/// Streams at once on a connection of HTTP/2: the least that RFC 9113 recommends.
const STREAMS: u32 = 100;

/// Serves until `stop` is there, and then until the last request is answered; at most `room`
/// connections at once, while others wait to be accepted.
/// Who takes longer than `header_timeout_ms` for a request's head is cut off, and on HTTP/2 who
/// does not answer a ping in twice that time; and who reads nothing of an answer for longer
/// than that, on HTTP/2 that answer alone. Who sends more of a body than was wanted may do so
/// for `body_timeout_ms` after the answer.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    room: usize,
    requests: &Requests,
    stop: impl Future<Output = ()>,
) {
    let head_timeout = Duration::from_millis(requests.header_timeout_ms);
    let body_timeout = Duration::from_millis(requests.body_timeout_ms);
    let patience = 2 * head_timeout;
    let mut builder = Builder::new(Streams { patience });
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(BUFFER)
        .header_read_timeout(head_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(head_timeout)
        .keep_alive_timeout(head_timeout);
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS)));
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = &mut stop => break,
        };
        let (place, stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // the client's own doing
            Err(error) if is_of_one(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "a connection is not accepted");
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
        };
        no_delay(&stream);
        let has_asked = Arc::new(AtomicBool::new(false));
        let unwanted = Unwanted::new(body_timeout);
        let socket = Socket::new(stream, patience, unwanted.clone());
        let service = service(router.clone(), peer, Arc::clone(&has_asked), unwanted);
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(socket), service)
            .into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            // until the first bytes tell which HTTP it is, no timeout of hyper's runs
            let says_nothing = async {
                tokio::time::sleep(head_timeout).await;
                if has_asked.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                // what has come is read before it is late
                biased;
                ended = while_read(connection, patience) => if let Some(Err(error)) = ended {
                    tracing::debug!(%peer, error, "a connection broke");
                },
                () = says_nothing => tracing::debug!(%peer, "a connection without a request is cut off"),
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let place = Arc::clone(room).acquire_owned().await;
    let place = place.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((place, stream, peer))
}

/// Whether it is the end of one connection, rather than that there is no room.
fn is_of_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
    )
}

fn service(
    router: Router,
    peer: SocketAddr,
    has_asked: Arc<AtomicBool>,
    unwanted: Unwanted,
) -> TowerToHyperService<
    impl tower::Service<
        Request<Incoming>,
        Response = hyper::Response<Answer>,
        Error = Infallible,
        Future: Send,
    > + Clone,
> {
    TowerToHyperService::new(service_fn(move |mut request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        // streams of HTTP/2 end by themselves
        let request = if request.version() < Version::HTTP_2 {
            Sent::of(request, &unwanted).map(Body::new)
        } else {
            request.map(Body::new)
        };
        let answer = router.clone().oneshot(request);
        let unwanted = unwanted.clone();
        async move {
            let mut response = answer.await?;
            if unwanted.is_left() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok(response.map(Answer::new))
        }
    }))
}

/// Sends small writes at once: with Nagle's algorithm the second of them waits
/// for the client's delayed acknowledgement, 40 ms.
fn no_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}
