//! The exchange itself, over `wasi:http`.

use std::cell::OnceCell;
use std::time::Duration;

use super::{Failure, Incoming, Post, Url};
use crate::component::wit::wasi::clocks::monotonic_clock::subscribe_duration;
use crate::component::wit::wasi::http::outgoing_handler;
use crate::component::wit::wasi::http::types::{
    ErrorCode, Fields, HeaderError, IncomingBody, IncomingResponse, Method, OutgoingBody,
    OutgoingRequest, Scheme, http_error_code,
};
use crate::component::wit::wasi::io::poll::{Pollable, poll};
use crate::component::wit::wasi::io::streams::{InputStream, StreamError};

/// Bytes to ask for at once when reading an answer.
const CHUNK: u64 = 64 * 1024;

pub(super) fn open(post: &Post<'_>, url: &Url<'_>) -> Result<Incoming, Failure> {
    let deadline = subscribe_duration(nanoseconds(post.timeout));
    let request = outgoing(post, url)?;
    // taken before the request is sent; no second body can be taken
    let body = request
        .body()
        .map_err(|()| Failure::Broken("no request body".to_owned()))?;
    // without options: what the host waits is bounded by the request's end, and what is
    // waited here by `deadline`
    let pending = outgoing_handler::handle(request, None).map_err(|code| failure(&code))?;

    // The host starts to read the body once the request is handed over. If it
    // refuses the request this write fails, and `pending` says why.
    let written = write(body, post.json, &deadline);

    wait(&pending.subscribe(), &deadline)?;
    let response = match pending.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(code))) => return Err(failure(&code)),
        Some(Err(())) | None => return Err(Failure::Broken("no response".to_owned())),
    };
    written?;
    Ok(Incoming {
        status: response.status(),
        headers: response.headers().entries(),
        body: Body::new(response, post.response_limit, deadline)?,
    })
}

/// A body on its way. Children of a resource are dropped before it, which the
/// order of the fields sees to.
pub(super) struct Body {
    /// Made when something is waited for.
    ready: OnceCell<Pollable>,
    stream: InputStream,
    _body: IncomingBody,
    _response: IncomingResponse,
    left: usize,
    deadline: Pollable,
}

impl Body {
    fn new(response: IncomingResponse, limit: usize, deadline: Pollable) -> Result<Self, Failure> {
        let none = |()| Failure::Broken("no response body".to_owned());
        let body = response.consume().map_err(none)?;
        let stream = body.stream().map_err(none)?;
        Ok(Self {
            ready: OnceCell::new(),
            stream,
            _body: body,
            _response: response,
            left: limit,
            deadline,
        })
    }

    pub(super) fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            match self.stream.read(CHUNK) {
                Ok(piece) if piece.is_empty() => self.wait(&self.deadline)?,
                Ok(piece) => {
                    let left = self.left.checked_sub(piece.len());
                    self.left = left.ok_or(Failure::TooLarge)?;
                    return Ok(Some(piece));
                }
                Err(StreamError::Closed) => return Ok(None),
                Err(StreamError::LastOperationFailed(error)) => {
                    return Err(match http_error_code(&error) {
                        Some(code) => failure(&code),
                        None => Failure::Broken(error.to_debug_string()),
                    });
                }
            }
        }
    }

    pub(super) fn drain(&mut self, timeout: Duration) {
        let deadline = subscribe_duration(nanoseconds(timeout));
        while let Ok(piece) = self.stream.read(CHUNK) {
            if piece.is_empty() && self.wait(&deadline).is_err() {
                return;
            }
        }
    }

    fn wait(&self, deadline: &Pollable) -> Result<(), Failure> {
        wait(self.ready.get_or_init(|| self.stream.subscribe()), deadline)
    }
}

fn outgoing(post: &Post<'_>, url: &Url<'_>) -> Result<OutgoingRequest, Failure> {
    let headers: Vec<_> = post
        .sent_headers()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
    let headers = Fields::from_list(&headers).map_err(|error| refused(&headers, error))?;
    let request = OutgoingRequest::new(headers);
    let scheme = if url.secure {
        Scheme::Https
    } else {
        Scheme::Http
    };
    request
        .set_method(&Method::Post)
        .and_then(|()| request.set_scheme(Some(&scheme)))
        .and_then(|()| request.set_authority(Some(url.authority)))
        .and_then(|()| request.set_path_with_query(Some(url.path_and_query)))
        .map_err(|()| Failure::Invalid("api_url cannot be sent".to_owned()))?;
    Ok(request)
}

/// Why headers cannot be sent, by the name of the first that cannot.
fn refused(headers: &[(String, Vec<u8>)], error: HeaderError) -> Failure {
    let alone =
        |header: &&(String, Vec<u8>)| Fields::from_list(std::slice::from_ref(*header)).is_err();
    let name = headers.iter().find(alone).map_or("", |(name, _)| name);
    Failure::Invalid(match error {
        HeaderError::Forbidden => format!("header {name} is set by the host alone"),
        HeaderError::InvalidSyntax | HeaderError::Immutable => {
            format!("header {name} cannot be sent")
        }
    })
}

fn write(body: OutgoingBody, mut bytes: &[u8], deadline: &Pollable) -> Result<(), Failure> {
    let broken = |what: &str| Failure::Broken(format!("the request body was not taken: {what}"));
    let stream = body.write().map_err(|()| broken("no stream"))?;
    while !bytes.is_empty() {
        let room = stream
            .check_write()
            .map_err(|error| broken(&error.to_string()))?;
        if room == 0 {
            wait(&stream.subscribe(), deadline)?;
            continue;
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let (now, later) = bytes.split_at(room);
        stream
            .write(now)
            .map_err(|error| broken(&error.to_string()))?;
        bytes = later;
    }
    // children of a resource are dropped before it
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|code| failure(&code))
}

/// Waits for `event`, or fails when `deadline` comes first.
fn wait(event: &Pollable, deadline: &Pollable) -> Result<(), Failure> {
    if poll(&[event, deadline]).contains(&0) {
        Ok(())
    } else {
        Err(Failure::Timeout)
    }
}

fn failure(code: &ErrorCode) -> Failure {
    match code {
        ErrorCode::HttpRequestDenied
        | ErrorCode::DestinationIpProhibited
        // which the host means of requests
        | ErrorCode::ConnectionLimitReached => Failure::Denied,
        ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => Failure::Timeout,
        ErrorCode::HttpResponseBodySize(_) => Failure::TooLarge,
        ErrorCode::DnsTimeout
        | ErrorCode::DnsError(_)
        | ErrorCode::ConnectionTimeout
        | ErrorCode::DestinationNotFound
        | ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::ConnectionRefused
        | ErrorCode::TlsProtocolError
        | ErrorCode::TlsCertificateError
        | ErrorCode::TlsAlertReceived(_) => Failure::Unreachable(code.to_string()),
        code => Failure::Broken(code.to_string()),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
