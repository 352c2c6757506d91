//! The sandbox: a component that misbehaves costs its own request and nothing else.

use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::component::{ask, misbehave, with_misbehave};
use crate::harness::{Act, BINARY, Client, GPT2, Host, Upstream, eventually};
use crate::models::shown;

/// Both models still answer.
async fn goes_on(host: &Host, customer: &Client) {
    assert_eq!(
        customer.post("/generate", ask("well")).await.expect(200)["response"],
        "well"
    );
    let local = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", local).await.expect(200);
    host.anyone().get("/ready").await.expect(200);
}

#[tokio::test]
async fn a_component_that_breaks_costs_its_request_alone() {
    let (host, customer, _upstream) = with_misbehave(
        Act::Answer("yes"),
        "[models.limits]\ncpu_ms = 500\nmemory_mib = 16\nrequest_bytes = 1048576",
    )
    .await;
    goes_on(&host, &customer).await;
    for (prompt, code) in [
        ("loop", "plugin_failed"),
        ("trap", "plugin_failed"),
        ("allocate", "plugin_failed"),
        ("recurse", "plugin_failed"),
        ("exit", "plugin_failed"),
        ("endless stream", ""),
        ("empty", "plugin_failed"),
        ("shout", "upstream_failed"),
        ("fetch https://forbidden.example/", "not_granted"),
        ("flood upstream", ""),
        ("huge header", ""),
        ("many headers", ""),
        ("huge body", ""),
    ] {
        let reply = customer.post("/generate", ask(prompt)).await;
        assert_eq!(reply.status, 502, "{prompt}: {}", reply.body);
        assert!(
            reply.body.to_string().len() < 2000,
            "{prompt}: {}",
            reply.body
        );
        let found = reply.expect_error(502);
        assert!(code.is_empty() || found == code, "{prompt}: {found}");
        goes_on(&host, &customer).await;
    }
    let totals = customer.get("/usage").await.expect(200)["totals"].clone();
    assert_eq!(totals["requests"], 13 + 2 * 14);
    let rows = customer.get("/usage/requests").await.expect(200);
    let failed = rows["requests"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|row| row["status"] == "failed");
    assert_eq!(
        failed.inspect(|row| assert_eq!(row["cost"], 0.0)).count(),
        13
    );
}

#[tokio::test]
async fn a_component_that_computes_leaves_the_others_their_turn() {
    let (host, customer, _upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\ncpu_ms = 1000").await;
    let loops: Vec<_> = (0..8)
        .map(|_| {
            let customer = customer.clone();
            tokio::spawn(async move {
                customer
                    .post("/generate", ask("loop"))
                    .await
                    .expect_error(502)
            })
        })
        .collect();
    goes_on(&host, &customer).await;
    assert!(
        loops.iter().any(|one| !one.is_finished()),
        "the loops were to be at work"
    );
    for one in loops {
        assert_eq!(one.await.expect("no panic"), "plugin_failed");
    }
}

#[tokio::test]
async fn a_component_that_waits_is_stopped_at_the_deadline() {
    let (host, customer, _upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\ntimeout_ms = 3000").await;
    assert_eq!(
        customer
            .post("/generate", ask("sleep"))
            .await
            .expect_error(504),
        "timeout"
    );
    goes_on(&host, &customer).await;
}

#[tokio::test]
async fn a_component_sees_nothing_of_the_machine() {
    let (_host, customer, _upstream) = with_misbehave(Act::Answer("yes"), "").await;
    let seen = customer.post("/generate", ask("peek")).await.expect(200);
    assert_eq!(seen["response"], "0 variables 0 arguments 0 files");
}

#[tokio::test]
async fn a_component_that_writes_without_end_is_cut_short() {
    let (host, customer, _upstream) = with_misbehave(Act::Answer("yes"), "").await;
    for prompt in ["log flood", "print flood"] {
        let before = host.log().lines().count();
        customer.post("/generate", ask(prompt)).await.expect(200);
        eventually("the log says so", async || {
            host.log()
                .lines()
                .skip(before)
                .any(|line| line.contains("plugin writes too much"))
        })
        .await;
        let lines = host
            .log()
            .lines()
            .skip(before)
            .filter(|line| line.contains("\"line\":"))
            .count();
        assert!((1..=100).contains(&lines), "{prompt}: {lines}");
    }
    goes_on(&host, &customer).await;
}

#[tokio::test]
async fn what_a_component_logs_stays_on_its_line() {
    let (host, customer, _upstream) = with_misbehave(Act::Answer("yes"), "").await;
    customer
        .post("/generate", ask("log flood"))
        .await
        .expect(200);
    for line in host.log().lines() {
        let parsed: Value = serde_json::from_str(line).expect("a line of the log is JSON");
        assert!(
            parsed["level"].is_string() && parsed["timestamp"].is_string(),
            "{line}"
        );
    }
}

/// What the log says of the latest failure.
async fn logged(host: &Host, what: &str) {
    eventually(what, async || host.log().contains(what)).await;
}

#[tokio::test]
async fn memory_ends_at_its_limit() {
    let (host, customer, _upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\nmemory_mib = 8").await;
    customer
        .post("/generate", ask("allocate"))
        .await
        .expect_error(502);
    logged(&host, "forcing trap when growing memory to 84").await;
    goes_on(&host, &customer).await;
}

#[tokio::test]
async fn tables_end_at_their_limit() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let config = misbehave(upstream.url(), "[models.limits]\ntable_elements = 3");
    let host = Host::builder().config(config).start().await.ready().await;
    let reason = shown(&host, 2).await["reason"].to_string();
    assert!(reason.contains("growing table to"), "{reason}");
}

#[tokio::test]
async fn requests_to_the_upstream_end_at_their_limit() {
    let (host, customer, upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\nupstream_requests = 3").await;
    customer
        .post("/generate", ask("flood upstream"))
        .await
        .expect_error(502);
    assert_eq!(upstream.seen().len(), 3);
    // a request's own
    customer.post("/generate", ask("fetch")).await.expect(200);
    goes_on(&host, &customer).await;
}

#[tokio::test]
async fn an_answer_ends_at_its_limit() {
    let (host, customer, _upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\nresponse_bytes = 1000").await;
    customer
        .post("/generate", ask("endless stream"))
        .await
        .expect_error(502);
    logged(&host, "longer than allowed").await;
    goes_on(&host, &customer).await;
}

#[tokio::test]
async fn lines_to_the_log_end_at_their_limit() {
    let (host, customer, _upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\nlog_lines = 5").await;
    customer
        .post("/generate", ask("log flood"))
        .await
        .expect(200);
    logged(&host, "plugin writes too much").await;
    let log = host.log();
    let lines = log.lines().filter(|line| line.contains("\"line\":"));
    assert_eq!(lines.count(), 5);
}

#[tokio::test]
async fn calls_end_at_the_depth_of_the_stack() {
    for (stack_kib, status) in [(64, 502), (512, 200)] {
        let upstream = Upstream::start(Act::Answer("yes")).await;
        let config = misbehave(upstream.url(), "");
        let config = format!("[components]\nstack_kib = {stack_kib}\n{GPT2}{config}");
        let host = Host::builder().config(config).start().await.ready().await;
        let customer = host.customer().await;
        customer
            .post("/generate", ask("dive 3000"))
            .await
            .expect(status);
        customer
            .post("/generate", ask("dive 1000000"))
            .await
            .expect_error(502);
        logged(&host, "call stack exhausted").await;
        goes_on(&host, &customer).await;
    }
}

#[tokio::test]
async fn more_requests_than_instances_are_told_to_come_again() {
    let upstream = Upstream::start(Act::Hold(" at last")).await;
    let config = format!(
        "[components]\ninstances = 2\n{}",
        misbehave(upstream.url(), "")
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let held: Vec<_> = (0..2)
        .map(|_| {
            let customer = customer.clone();
            tokio::spawn(async move { customer.post("/generate", ask("fetch")).await })
        })
        .collect();
    eventually("both are held", async || upstream.open() == 2).await;
    let reply = customer.post("/generate", ask("one more")).await;
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(reply.expect_error(503), "model_overloaded");
    upstream.release(2);
    for one in held {
        one.await.expect("no panic").expect(200);
    }
    eventually("there is an instance", async || {
        customer.post("/generate", ask("one more")).await.status == 200
    })
    .await;
}

#[test]
fn a_machine_without_the_address_space_is_told_what_to_do() {
    let dir = tempfile::tempdir().expect("a folder");
    // what a server with 100 GB of address space says, until it serves or ends
    let said = |instances: u32| {
        let config =
            format!("[server]\nlisten = \"127.0.0.1:0\"\n[components]\ninstances = {instances}\n");
        std::fs::write(dir.path().join("model-host.toml"), config).expect("a file");
        let mut server = Command::new("sh")
            .args(["-c", "ulimit -v 100000000; exec \"$0\" serve", &BINARY])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut said = String::new();
        for line in BufReader::new(server.stderr.take().expect("a pipe")).lines() {
            said += &line.expect("text");
            if said.contains("serving http") {
                break;
            }
        }
        server.kill().ok();
        server.wait().expect("a child");
        said
    };
    let refusal = said(1000);
    assert!(
        refusal.contains("components.instances") && refusal.contains("ulimit -v"),
        "{refusal}"
    );
    let few = said(10);
    assert!(few.contains("serving http"), "{few}");
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused() {
    let host = Host::start().await.ready().await;
    let model =
        |limit: &str| misbehave("http://127.0.0.1:9/", &format!("[models.limits]\n{limit}"));
    let shared = |setting: &str| format!("[components]\n{setting}\n{GPT2}");
    for (config, at) in [
        (
            model("memory_mib = 0"),
            "models[0].limits.memory_mib: must be from 1 to 1024",
        ),
        (
            model("memory_mib = 1025"),
            "models[0].limits.memory_mib: must be from 1 to 1024",
        ),
        (
            model("table_elements = 100001"),
            "models[0].limits.table_elements: must be from 1 to 100000",
        ),
        (
            model("cpu_ms = 0"),
            "models[0].limits.cpu_ms: must be at least 1",
        ),
        (
            model("timeout_ms = 0"),
            "models[0].limits.timeout_ms: must be at least 1",
        ),
        (model("log_lines = -1"), "limits.log_lines"),
        (
            model("upstream_requests = \"many\""),
            "limits.upstream_requests",
        ),
        (
            shared("instances = 0"),
            "components.instances: must be from 1 to 10000",
        ),
        (
            shared("stack_kib = 1"),
            "components.stack_kib: must be from 64 to 8192",
        ),
        (shared("stack_kb = 1"), "stack_kb"),
    ] {
        host.write_config(&config);
        let reply = host.admin().post("/admin/reload", Value::Null).await;
        let message = reply.body["error"]["message"].to_string();
        assert_eq!(reply.expect_error(409), "invalid_configuration", "{config}");
        assert!(message.contains(at), "{at} in {message}");
    }
    host.write_config(&shared("instances = 7"));
    let report = host
        .admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    assert_eq!(report["needs_restart"], json!(["components"]));
}

#[tokio::test]
async fn the_clock_stands_while_no_component_computes() {
    let (host, customer, _upstream) =
        with_misbehave(Act::Answer("yes"), "[models.limits]\ncpu_ms = 500").await;
    let tasks = format!("/proc/{}/task", host.pid());
    let is_the_clocks = |folder: &Path| {
        let name = std::fs::read_to_string(folder.join("comm"));
        name.is_ok_and(|name| name.trim() == "wasm-clock")
    };
    let clock = std::fs::read_dir(tasks).expect("its threads");
    let clock = clock
        .map(|entry| entry.expect("a thread").path())
        .find(|folder| is_the_clocks(folder))
        .expect("the clock");
    // how often it has slept: it ticks every 2 ms, and this looks every 10, many times in a row
    let slept = || {
        let status = std::fs::read_to_string(clock.join("status")).expect("its status");
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt"));
        line.expect("a count").to_owned()
    };
    let (last, looks) = (Cell::default(), Cell::new(0));
    eventually("it stands", async || {
        let now = slept();
        let is_same = last.replace(now.clone()) == now;
        looks.set(if is_same { looks.get() + 1 } else { 0 });
        looks.get() == 20
    })
    .await;
    let reply = customer.post("/generate", ask("loop")).await;
    assert_eq!(reply.expect_error(502), "plugin_failed");
    assert_ne!(slept(), last.take());
}
