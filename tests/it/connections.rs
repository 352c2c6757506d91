//! Connections of clients that take their time.

use std::cell::Cell;
use std::io::ErrorKind;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ADMIN_KEY, Act, GPT2, Host, PATIENCE, Upstream, eventually, lawgent};

/// Reads until the server closes the connection.
async fn until_closed(socket: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut read)).await;
    // a reset is an end too
    closed.expect("it is cut off").ok();
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn who_does_not_send_a_whole_head_in_time_is_cut_off() {
    let upstream = Upstream::start(Act::Hold("at last")).await;
    let config = format!(
        "[requests]\nheader_timeout_ms = 2000\n{GPT2}{}",
        lawgent(upstream.url())
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    // the time is for the head: a body and an answer may take longer
    let asking = tokio::spawn({
        let customer = customer.clone();
        async move {
            let ask = json!({ "text": "Once", "model_id": 2, "max_new_tokens": 5 });
            customer.post("/generate", ask).await
        }
    });
    eventually("the upstream has it", async || upstream.open() == 1).await;

    let address = host.url().trim_start_matches("http://");
    let whole = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    let cut_off = async |sent: &str| {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(sent.as_bytes()).await.expect("sent");
        let answer = until_closed(&mut socket).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{sent:?}: {answer}");
    };
    tokio::join!(
        cut_off(""),
        cut_off("P"),
        cut_off("PRI * HTTP/2.0\r\n"),
        cut_off("GET /health HTTP/1.1\r\nhost: a\r\nx-slow: "),
    );
    // nor after a request that was well
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let two = format!("{whole}GET /health HTTP/1.1\r\n");
    socket.write_all(two.as_bytes()).await.expect("sent");
    let answer = until_closed(&mut socket).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    // a byte now and then does not help
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket
        .write_all(b"GET /health HTTP/1.1\r\nx-slow: ")
        .await
        .expect("sent");
    eventually("it is cut off", async || socket.try_write(b"a").is_err()).await;

    assert!(!asking.is_finished());
    upstream.release(1);
    let answer = asking.await.expect("no panic").expect(200);
    assert_eq!(answer["response"], "at last");
}

/// A connection of HTTP/2 by hand, whose client lets a stream have so many bytes.
struct Http2(TcpStream);

/// Types of frames (RFC 9113).
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame");
    let length = &length.to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET`, `http`, a path and a host (RFC 7541).
fn get(stream: u32, path: &str) -> Vec<u8> {
    let (before, after) = (b"\x82\x86\x04".as_slice(), b"\x01\x01a".as_slice());
    let mut length = vec![u8::try_from(path.len().min(127)).expect("a byte")];
    if let Some(rest) = path.len().checked_sub(127) {
        assert!(rest < 1 << 14, "a long path");
        length.extend([(rest % 128) as u8 | 128, (rest / 128) as u8]);
    }
    let head = [before, &length, path.as_bytes(), after].concat();
    frame(HEADERS, 5, stream, &head)
}

impl Http2 {
    async fn connect(host: &Host, window: u8) -> Self {
        let address = host.url().trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        socket.write_all(preface).await.expect("sent");
        let mut this = Self(socket);
        this.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, window]).await;
        this
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        let frame = frame(kind, flags, stream.into(), payload);
        self.0.write_all(&frame).await.expect("sent");
    }

    async fn get(&mut self, stream: u8, path: &str) {
        let frame = get(stream.into(), path);
        self.0.write_all(&frame).await.expect("sent");
    }

    /// Answers pings until there is a frame of this type on the stream.
    async fn until(&mut self, wanted: u8, stream: u8) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.expect("a frame");
            let [_, high, low, kind, flags, .., on] = head;
            let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
            self.0.read_exact(&mut payload).await.expect("a frame");
            if kind == PING && flags == 0 {
                self.send(PING, 1, 0, &payload).await;
            }
            if (kind, on) == (wanted, stream) {
                return;
            }
        }
    }
}

#[tokio::test]
async fn who_speaks_http_2_and_answers_no_ping_is_cut_off() {
    let config = format!("[requests]\nheader_timeout_ms = 2000\n{GPT2}");
    let host = Host::builder().config(config).start().await;
    let mut connection = Http2::connect(&host, u8::MAX).await;
    connection.get(1, "/health").await;
    let answer = until_closed(&mut connection.0).await;
    assert!(answer.contains("status"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_cut_off() {
    let config = format!("[requests]\nheader_timeout_ms = 2000\n{GPT2}");
    let host = Host::builder().config(config).start().await;
    let not_read = async |window: u8| {
        let mut connection = Http2::connect(&host, window).await;
        connection.get(1, "/login").await;
        let reset = tokio::time::timeout(PATIENCE, connection.until(RESET, 1)).await;
        reset.unwrap_or_else(|_| panic!("it is kept, with a window of {window}"));
        // other streams of the connection are as before
        connection.get(3, "/health").await;
        let answered = tokio::time::timeout(PATIENCE, connection.until(HEADERS, 3)).await;
        answered.expect("the next one is answered");
    };
    // of the page nothing, its first byte, or some of it
    tokio::join!(not_read(0), not_read(1), not_read(100));

    let address = host.url().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let quotes = "%22".repeat(5000);
    let request = format!("GET /login?next={quotes} HTTP/1.1\r\nhost: a\r\n\r\n");
    // more than what the kernel keeps for both of them
    send_until_cut_off(&mut socket, request.as_bytes()).await;
}

/// Sends this again and again without reading, until the server cuts the connection off.
async fn send_until_cut_off(socket: &mut TcpStream, bytes: &[u8]) {
    let sending = async { while socket.write_all(bytes).await.is_ok() {} };
    let cut_off = tokio::time::timeout(PATIENCE, sending).await;
    cut_off.expect("it is cut off");
}

#[tokio::test]
async fn who_reads_no_answer_without_a_body_is_cut_off() {
    let config = format!("[requests]\nheader_timeout_ms = 500\n{GPT2}");
    let host = Host::builder().config(config).start().await;
    let address = host.url().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let heads = "HEAD /health HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1000);
    send_until_cut_off(&mut socket, heads.as_bytes()).await;
}

#[tokio::test]
async fn who_speaks_http_2_and_reads_nothing_is_cut_off() {
    let config = format!("[requests]\nheader_timeout_ms = 500\n{GPT2}");
    let host = Host::builder().config(config).start().await;
    let path = format!("/login?next={}", "%22".repeat(4000));
    let requests: Vec<_> = (0..2000).map(|at| get(2 * at + 1, &path)).collect();
    let (requests, sent) = (requests.concat(), Cell::new(0));
    let mut connection = Http2::connect(&host, u8::MAX).await;
    // room for all that is asked for, which is more than the kernel keeps
    let window = 0x7fff_0000_u32.to_be_bytes();
    let setting = [&[0, 4], window.as_slice()].concat();
    connection.send(SETTINGS, 0, 0, &setting).await;
    connection.send(WINDOW_UPDATE, 0, 0, &window).await;
    // a few at a time, since no more than a hundred are answered at once
    let cut_off = async || match connection.0.try_write(&requests[sent.get()..][..100_000]) {
        Ok(more) => {
            sent.set(sent.get() + more);
            false
        }
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    eventually("it is cut off", cut_off).await;
}

/// A request with a body that its client sends before it looks for the answer.
async fn send_all(host: &Host, head: &str, body: &[u8]) -> String {
    let address = host.url().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let head = format!("POST {head}\r\nhost: a\r\n\r\n");
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(body).await.expect("all of it is sent");
    until_closed(&mut socket).await
}

#[tokio::test]
async fn a_refusal_reaches_who_sends_all_before_it_looks() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let (key, length) = (format!("x-api-key: {}", customer.key()), 8 << 20);
    let admin = format!("x-admin-key: {ADMIN_KEY}");
    let body = vec![b' '; length];
    let chunked = [
        format!("{length:x}\r\n").as_bytes(),
        &body,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    for (head, status) in [
        ("/generate HTTP/1.1".to_owned(), "401"),
        (format!("/generate HTTP/1.1\r\n{admin}"), "403"),
        ("/nothing HTTP/1.1".to_owned(), "404"),
        ("/health HTTP/1.1".to_owned(), "405"),
        (format!("/generate HTTP/1.1\r\n{key}"), "413"),
        (
            format!("/generate HTTP/1.1\r\n{key}\r\ncontent-type: a/b"),
            "415",
        ),
    ] {
        for _ in 0..4 {
            let (of_length, in_chunks) = (
                format!("{head}\r\ncontent-length: {length}"),
                format!("{head}\r\ntransfer-encoding: chunked"),
            );
            for (head, body) in [(of_length, &body), (in_chunks, &chunked)] {
                let answer = send_all(&host, &head, body).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{answer}"
                );
                assert!(answer.contains("connection: close\r\n"), "{answer}");
                assert!(answer.ends_with("}}"), "{answer}");
            }
        }
    }
    // a short one that comes with its head is read, and the connection goes on
    let short = "/generate HTTP/1.1\r\ncontent-length: 2\r\nhost: a\r\n\r\n{}";
    let next = "GET /health HTTP/1.1\r\nconnection: close";
    let answers = send_all(&host, &format!("{short}{next}"), b"").await;
    assert!(answers.starts_with("HTTP/1.1 401 "), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 "), "{answers}");
    // who asks first whether to send it is not asked for it
    let asks = format!("/generate HTTP/1.1\r\ncontent-length: {length}\r\nexpect: 100-continue");
    let answer = send_all(&host, &asks, b"").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

#[tokio::test]
async fn what_is_sent_after_a_refusal_is_not_read_without_end() {
    for (timeout, is_slow) in [(500, true), (600_000, false)] {
        let config = format!("[requests]\nbody_timeout_ms = {timeout}\n{GPT2}");
        let host = Host::builder().config(config).start().await;
        let address = host.url().trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let head = "POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000000\r\n\r\n";
        socket.write_all(head.as_bytes()).await.expect("sent");
        if is_slow {
            let cut_off = async || socket.try_write(b"a").is_err();
            eventually("it is cut off", cut_off).await;
        } else {
            send_until_cut_off(&mut socket, &[b'a'; 1 << 16]).await;
        }
    }
}

#[tokio::test]
async fn connections_leave_files_for_upstreams() {
    // those that wait are not more than the kernel lets wait
    const ALL: usize = 140;
    // the limit is raised; or it cannot be, and some connections wait
    for (ulimit, answered) in [("-Sn 128", ALL), ("-n 128", 24)] {
        let upstream = Upstream::start(Act::Answer("there")).await;
        // nobody is cut off meanwhile
        let patient = "[requests]\nheader_timeout_ms = 600000\n";
        let host = Host::builder()
            .config(format!("{patient}{GPT2}{}", lawgent(upstream.url())))
            .ulimit(ulimit)
            .start()
            .await
            .ready()
            .await;
        let customer = host.customer().await;
        let ask = json!({ "text": "Once", "model_id": 2 });
        // its connection is open before those of others
        customer.post("/generate", ask.clone()).await.expect(200);
        let address = host.url().trim_start_matches("http://");
        let mut others = Vec::new();
        for _ in 0..ALL {
            let mut socket = TcpStream::connect(address).await.expect("a connection");
            let request = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
            socket.write_all(request).await.expect("sent");
            others.push(socket);
        }
        for socket in &mut others[..answered] {
            let answer = tokio::time::timeout(PATIENCE, socket.read_u8()).await;
            answer.expect("in time").expect("an answer");
        }
        for _ in 0..20 {
            let answer = customer.post("/generate", ask.clone()).await.expect(200);
            assert_eq!(answer["response"], "there");
        }
        let is_low = host.log().contains("the limit of open files is low");
        assert_eq!(is_low, answered < ALL);
    }
}
