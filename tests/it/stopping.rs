//! How the process ends: which signals it obeys, what it finishes and what it cuts off.

use std::process::Command;
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::unix::pipe;

use crate::harness::{Act, GPT2, Host, Upstream, eventually, lawgent};
use crate::servers;

fn ask() -> Value {
    json!({ "text": "Once", "model_id": 2 })
}

/// A server with one request in flight, and its answer to come.
async fn in_flight(
    server: &str,
) -> (
    Host,
    Upstream,
    tokio::task::JoinHandle<crate::harness::Reply>,
) {
    let upstream = Upstream::start(Act::Hold(" at last")).await;
    let host = Host::builder()
        .config(format!("{server}{}", lawgent(upstream.url())))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    let asking = tokio::spawn(async move { customer.post("/generate", ask()).await });
    eventually("the upstream is asked", async || upstream.open() == 1).await;
    (host, upstream, asking)
}

/// The rows on record after a restart.
async fn rows(host: Host) -> Value {
    let host = host.restart().await;
    host.admin().get("/usage/requests").await.expect(200)["requests"].clone()
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_takes_nothing_new() {
    for signal in ["TERM", "INT"] {
        let (mut host, upstream, asking) = in_flight("").await;
        host.signal(signal);
        eventually("the log says so", async || {
            host.log().contains("stopping: requests in flight")
        })
        .await;
        let address = host.url().trim_start_matches("http://").to_owned();
        eventually("no connection is taken", async || {
            tokio::net::TcpStream::connect(&address).await.is_err()
        })
        .await;
        assert!(!asking.is_finished());
        upstream.release(1);
        assert_eq!(
            asking.await.expect("no panic").expect(200)["response"],
            " at last"
        );
        assert!(host.wait_exit().await.success());
        let rows = rows(host).await;
        assert_eq!(
            (rows.as_array().map(Vec::len), &rows[0]["status"]),
            (Some(1), &json!("ok"))
        );
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let (mut host, _upstream, asking) = in_flight("").await;
    host.signal("TERM");
    eventually("the log says so", async || {
        host.log().contains("stopping: requests in flight")
    })
    .await;
    host.signal("TERM");
    assert_eq!(host.wait_exit().await.code(), Some(130));
    assert!(asking.await.is_err(), "the connection was cut");
    host.restart().await.ready().await;
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_off_and_on_record() {
    let (mut host, _upstream, asking) = in_flight("[server]\ndrain_seconds = 1\n").await;
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    asking.await.ok();
    let rows = rows(host).await;
    assert_eq!(
        (&rows[0]["status"], &rows[0]["cost"]),
        (&json!("failed"), &json!(0.0))
    );
}

#[tokio::test]
async fn so_is_what_goes_on_for_a_client_that_may_come_back() {
    let upstream = Upstream::start(Act::Stall).await;
    let config = format!("[server]\ndrain_seconds = 1\n{}", lawgent(upstream.url()));
    let mut host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let asking = customer
        .request(Method::POST, "/generate")
        .header("idempotency-key", "once")
        .json(&json!({ "text": "Is it?", "model_id": 2 }));
    let asking = tokio::spawn(asking.send());
    eventually("the upstream has it", async || upstream.open() == 1).await;
    asking.abort();
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    let rows = rows(host).await;
    assert_eq!(rows[0]["status"], "failed", "{rows}");
}

#[tokio::test]
async fn idle_connections_do_not_keep_the_server() {
    let mut host = Host::builder()
        .config("[server]\ndrain_seconds = 600\n")
        .start()
        .await;
    host.anyone().get("/health").await.expect(200);
    let address = host.url().trim_start_matches("http://").to_owned();
    let _idle = tokio::net::TcpStream::connect(&address)
        .await
        .expect("a connection");
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    assert!(host.log().contains("stopped"));
}

#[tokio::test]
async fn a_model_that_is_being_read_does_not_keep_the_server() {
    let mut host = Host::builder().start().await.ready().await;
    // it is read until somebody has written it
    let endless = host.dir().join("endless.wasm");
    let made = Command::new("mkfifo").arg(&endless).status();
    assert!(made.expect("mkfifo runs").success());
    host.write_config(&format!(
        "{GPT2}[[models]]\nid = 2\nname = \"endless\"\nplugin = \"endless.wasm\"\n"
    ));
    host.signal("HUP");
    let (writer, open) = (Mutex::new(None), pipe::OpenOptions::new());
    eventually("it is being read", async || {
        let opened = open.open_sender(&endless).ok();
        let is_open = opened.is_some();
        *writer.lock().expect("no panic") = opened;
        is_open
    })
    .await;
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    assert!(host.log().contains("stopped"));
}

#[tokio::test]
async fn old_answers_that_are_yet_to_be_deleted_do_not_keep_the_server() {
    let host = servers::first(GPT2).await;
    host.customer().await;
    let database = host.database();
    let old = "INSERT INTO answers SELECT 1, 'old-' || n, '', 'r', '{}', 0 \
        FROM generate_series(1, 5000) AS n";
    database.execute(old).await.expect("answers");
    let locked = database.begin("LOCK TABLE answers IN SHARE MODE").await;
    let mut host = host.restart().await;
    eventually("the first are to be deleted", async || {
        database.number(servers::WAITS).await == 1
    })
    .await;
    host.signal("TERM");
    let address = host.url().trim_start_matches("http://").to_owned();
    eventually("no connection is taken", async || {
        tokio::net::TcpStream::connect(&address).await.is_err()
    })
    .await;
    drop(locked);
    assert!(host.wait_exit().await.success());
    let left = "SELECT count(*) FROM answers";
    assert!(database.number(left).await > 0);
}
