//! Connections of clients that take their time.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Act, GPT2, Host, PATIENCE, Upstream, eventually, lawgent};

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
        "[requests]\nheader_timeout_ms = 500\n{GPT2}{}",
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
    for sent in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n",
        "GET /health HTTP/1.1\r\nhost: a\r\nx-slow: ",
    ] {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(sent.as_bytes()).await.expect("sent");
        let answer = until_closed(&mut socket).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{sent:?}: {answer}");
    }
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

#[tokio::test]
async fn who_speaks_http_2_and_answers_no_ping_is_cut_off() {
    let config = format!("[requests]\nheader_timeout_ms = 500\n{GPT2}");
    let host = Host::builder().config(config).start().await;
    let address = host.url().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    // RFC 9113: no settings; then GET, http, a path and a host (RFC 7541), on stream 1
    let head = [
        b"\x82\x86\x04\x07/health".as_slice(),
        b"\x01\x01a".as_slice(),
    ]
    .concat();
    let length = u8::try_from(head.len()).expect("a short head");
    let sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
        &[0, 0, 0, 4, 0, 0, 0, 0, 0],
        &[0, 0, length, 1, 5, 0, 0, 0, 1],
        &head,
    ]
    .concat();
    socket.write_all(&sent).await.expect("sent");
    let answer = until_closed(&mut socket).await;
    assert!(answer.contains("status"), "{answer}");
}
