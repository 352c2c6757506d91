//! What is granted, by the spelling of the address, what may be read, and how connections
//! are made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use hyper_util::client::legacy::connect::dns::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower::{BoxError, service_fn};
use wasmtime_wasi_http::Error;

use super::client::client;
use super::{Exchange, Gate, Upstream};

fn upstream(url: &str) -> Upstream {
    let grants = ["https://files.example", "http://[::1]:8080"];
    Upstream {
        grants: grants.map(|grant| grant.parse().unwrap()).to_vec(),
        ..Upstream::new(url.parse().unwrap())
    }
}

/// Whether `asked` may be reached where `api_url` and the grants above are given.
fn is_granted(api_url: &str, asked: &str) -> bool {
    asked
        .parse()
        .is_ok_and(|asked| upstream(api_url).grants(&asked))
}

#[test]
fn an_origin_is_granted_and_nothing_beside_it() {
    let api = "https://api.example/v1/completions";
    for granted in [
        "https://api.example/v1/completions",
        "https://api.example/other?q=1",
        "https://api.example:443/",
        "https://API.example/",
        "https://files.example/a/b",
        "http://[::1]:8080/",
        "http://[0:0::1]:8080/",
    ] {
        assert!(is_granted(api, granted), "{granted}");
    }
    for refused in [
        "http://api.example/",
        "https://api.example:8443/",
        "https://api.example./",
        "https://api.example.evil/",
        "https://evil-api.example/",
        "https://user@api.example/",
        "https://user:password@api.example/",
        "https://:password@api.example/",
        "https://api.example@evil.example/",
        "https://api.example%2eevil.example/",
        "https://files.example:8443/",
        "http://files.example/",
        "http://[::1]/",
        "http://[::1%25lo]:8080/",
        "http://localhost/",
        "ftp://api.example/",
        "file:///etc/passwd",
        "",
    ] {
        assert!(!is_granted(api, refused), "{refused}");
    }
}

#[test]
fn an_address_is_the_same_however_it_is_spelled_and_no_other() {
    let api = "http://127.0.0.1:9000/";
    // these are that very address, so there is nothing to refuse
    for same in [
        "http://127.1:9000/",
        "http://2130706433:9000/",
        "http://0x7f000001:9000/",
        "http://0177.0.0.1:9000/",
        "http://127.0.0.1.:9000/",
    ] {
        assert!(is_granted(api, same), "{same}");
        assert!(!is_granted("https://api.example/", same), "{same}");
    }
    for other in [
        "http://127.0.0.2:9000/",
        "http://[::ffff:127.0.0.1]:9000/",
        "http://[::ffff:7f00:1]:9000/",
        "http://[::127.0.0.1]:9000/",
        "http://[fe80::1%25eth0]:9000/",
        "http://0:9000/",
        "http://localhost:9000/",
    ] {
        assert!(!is_granted(api, other), "{other}");
    }
}

#[test]
fn an_answer_is_read_without_what_the_host_keeps_to_itself() {
    let telling = Upstream {
        secret: Some("hush-hush-hush".into()),
        secret_header: HeaderName::from_static("x-api-key"),
        ..upstream("https://api.example")
    };
    let gate = Gate::new("model".into(), Arc::new(telling), Arc::default()).unwrap();
    let answered = |named: &[(&'static str, &'static str)]| -> HeaderMap {
        let header = |(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        named.iter().copied().map(header).collect()
    };
    let plain = answered(&[("content-type", "text/plain"), ("x-more", "a")]);
    assert_eq!(gate.readable(plain.clone()), plain);
    let told = answered(&[
        ("x-api-key", "another"),
        ("set-cookie", "a=b"),
        ("authorization", "Bearer another"),
        ("x-told", "it is hush-hush-hush"),
        ("x-more", "a"),
    ]);
    assert_eq!(gate.readable(told), answered(&[("x-more", "a")]));

    // what is as short stands for a key, and for many another word
    let short = Upstream {
        secret: Some("hush".into()),
        ..upstream("https://api.example")
    };
    let gate = Gate::new("model".into(), Arc::new(short), Arc::default()).unwrap();
    let told = answered(&[("x-told", "it is hush")]);
    assert_eq!(gate.readable(told.clone()), told);
}

/// An address that says nothing to whoever connects: those that it has room for are there.
async fn silent() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    (listener, held)
}

/// What a request comes to whose upstream has these addresses, when a connection may take
/// so many seconds.
async fn asked(addresses: &'static [[u8; 4]], port: u16, seconds: u64) -> Result<u16, Error> {
    let url = format!("http://upstream.example:{port}/");
    let found = service_fn(move |_: Name| async move {
        let found = addresses.iter().map(|&ip| (ip, 0).into());
        Ok::<_, BoxError>(found.collect::<Vec<_>>().into_iter())
    });
    let gate = Gate::new("model".into(), Arc::new(upstream(&url)), Arc::default()).unwrap();
    let gate = Gate {
        client: client(found, Duration::from_secs(seconds)).unwrap(),
        ..gate
    };
    let exchange = Exchange {
        method: Method::GET,
        url,
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let answer = gate.send(exchange, None, deadline).await;
    answer.map(|(answer, _)| answer.status().as_u16())
}

#[tokio::test]
async fn an_address_that_says_nothing_hides_no_other() {
    let (silent, _held) = silent().await;
    let port = silent.local_addr().unwrap().port();
    let other = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = other.accept().await.unwrap();
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    });
    let status = asked(&[[127, 0, 0, 1], [127, 0, 0, 2]], port, 10).await;
    assert_eq!(status.unwrap(), 204);
}

#[tokio::test]
async fn an_upstream_without_a_connection_in_time_was_sent_nothing() {
    let (silent, _held) = silent().await;
    let port = silent.local_addr().unwrap().port();
    let error = asked(&[[127, 0, 0, 1]], port, 1).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionTimeout), "{error:?}");
}
