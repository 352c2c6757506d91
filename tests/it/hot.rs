//! Components are exchanged while the server runs: by their file alone, only for one
//! that is proven, and without a request being the worse for it.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::component::{ask, misbehave};
use crate::harness::{Act, BINARY, Client, Host, Upstream, component, eventually};
use crate::models::shown;

pub fn bytes(plugin: &str) -> Vec<u8> {
    std::fs::read(component(plugin)).expect("a component")
}

/// A server with one model whose component is `plugin.wasm` in the server's folder.
async fn with_file(upstream: &Upstream, more: &str) -> (Host, Client) {
    let more = format!("model_name = \"m\"\n{more}");
    let config = misbehave(upstream.url(), &more).replace(&component("misbehave"), "plugin.wasm");
    let host = Host::builder()
        .config(config)
        .file("plugin.wasm", bytes("misbehave"))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    (host, customer)
}

/// Replaces the component as a deployment does.
fn replace(host: &Host, bytes: &[u8]) {
    let part = host.dir().join("plugin.wasm.part");
    std::fs::write(&part, bytes).expect("a file");
    std::fs::rename(part, host.dir().join("plugin.wasm")).expect("a file");
}

pub async fn until_plugin_is(host: &Host, name: &str) {
    eventually(name, async || {
        let plugin = shown(host, 2).await["plugin"].to_string();
        plugin.contains(name)
    })
    .await;
}

pub async fn until_problem_says(host: &Host, why: &str) {
    eventually(why, async || {
        let problem = shown(host, 2).await["problem"].to_string();
        problem.contains(why)
    })
    .await;
}

/// The digests of the customer's requests, in their order.
async fn digests(customer: &Client) -> Vec<Value> {
    let usage = customer.get("/usage/requests").await.expect(200);
    let rows = usage["requests"].as_array().expect("a list");
    rows.iter()
        .map(|row| row["plugin_digest"].clone())
        .collect()
}

#[tokio::test]
async fn a_component_goes_live_when_its_file_is_replaced_or_written() {
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let (host, customer) = with_file(&upstream, "").await;
    let first = shown(&host, 2).await["digest"].clone();
    let asked = customer.post("/generate", ask("hello")).await.expect(200);
    assert_eq!(asked["response"], "hello");

    replace(&host, &bytes("lawgent-thinking"));
    until_plugin_is(&host, "lawgent-thinking").await;
    let second = shown(&host, 2).await["digest"].clone();
    let asked = customer.post("/generate", ask("hello")).await.expect(200);
    assert_eq!(asked["response"], " yes");

    std::fs::write(host.dir().join("plugin.wasm"), bytes("misbehave")).expect("a file");
    until_plugin_is(&host, "misbehave").await;
    customer.post("/generate", ask("hello")).await.expect(200);
    assert_eq!(digests(&customer).await, [first.clone(), second, first]);
}

#[tokio::test]
async fn a_component_that_comes_later_goes_live() {
    let config =
        misbehave("http://127.0.0.1:9/", "").replace(&component("misbehave"), "plugin.wasm");
    let host = Host::builder().config(config).start().await.ready().await;
    let reason = shown(&host, 2).await["reason"].to_string();
    assert!(reason.contains("cannot read it"), "{reason}");
    replace(&host, &bytes("misbehave"));
    until_plugin_is(&host, "misbehave").await;
    let customer = host.customer().await;
    customer.post("/generate", ask("hello")).await.expect(200);
    // by hand too
    replace(&host, b"rubbish");
    host.signal("HUP");
    let report = host
        .admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    assert_eq!(report["failed"][0]["model"], "misbehave");
}

#[tokio::test]
async fn what_is_half_written_replaces_nothing() {
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let (host, customer) = with_file(&upstream, "").await;
    let new = bytes("lawgent-thinking");
    let (half, rest) = new.split_at(new.len() / 2);
    let mut file = std::fs::File::create(host.dir().join("plugin.wasm")).expect("a file");
    file.write_all(half).expect("written");
    // somebody asks for a reload at the worst of times
    let report = host
        .admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    assert_eq!(report["failed"][0]["model"], "misbehave", "{report}");
    until_problem_says(&host, "not a WebAssembly component").await;
    let asked = customer.post("/generate", ask("hello")).await.expect(200);
    assert_eq!(asked["response"], "hello");

    file.write_all(rest).expect("written");
    drop(file);
    until_plugin_is(&host, "lawgent-thinking").await;
    assert!(shown(&host, 2).await["problem"].is_null());
}

#[tokio::test]
async fn a_request_ends_with_the_component_it_began_with() {
    let upstream = Upstream::start(Act::Hold(" at last")).await;
    let (host, customer) = with_file(&upstream, "").await;
    let old = shown(&host, 2).await["digest"].clone();
    let asking = {
        let customer = customer.clone();
        tokio::spawn(async move { customer.post("/generate", ask("fetch")).await })
    };
    eventually("the upstream is asked", async || upstream.open() == 1).await;
    replace(&host, &bytes("lawgent-thinking"));
    until_plugin_is(&host, "lawgent-thinking").await;
    let new = shown(&host, 2).await["digest"].clone();
    upstream.release(2);
    let old_answer = asking.await.expect("no panic").expect(200);
    // as only the old one puts it
    let text = old_answer["response"].as_str().expect("text");
    assert!(text.starts_with("200 "), "{text}");
    let new_answer = customer.post("/generate", ask("fetch")).await.expect(200);
    assert_eq!(new_answer["response"], " at last");
    assert_eq!(digests(&customer).await, [old, new]);
}

#[tokio::test]
async fn what_is_not_proven_leaves_the_old_one_and_says_why() {
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let (host, customer) = with_file(&upstream, "").await;
    let digest = shown(&host, 2).await["digest"].clone();
    let old = std::fs::read_to_string(host.dir().join("model-host.toml")).expect("a file");
    let trap_at = |function: &str| format!("{old}[models.settings]\ntrap_at = \"{function}\"\n");
    for (config, file, why) in [
        (
            old.clone(),
            b"rubbish".to_vec(),
            "not a WebAssembly component",
        ),
        (
            trap_at("describe"),
            bytes("misbehave"),
            "it failed at describe",
        ),
        (
            trap_at("estimate"),
            bytes("misbehave"),
            "it failed at a short request",
        ),
        // no network for one that asks for it
        (
            old.replace("api_url = ", "# ").replace("api_key = ", "# "),
            bytes("misbehave"),
            "no api_url",
        ),
    ] {
        replace(&host, &file);
        host.write_config(&config);
        until_problem_says(&host, why).await;
        let model = shown(&host, 2).await;
        assert_eq!(
            (&model["status"], &model["digest"]),
            (&json!("ready"), &digest)
        );
        assert!(host.log().contains(why), "{why}");
        let asked = customer.post("/generate", ask("hello")).await.expect(200);
        assert_eq!(asked["response"], "hello");
    }
    assert!(upstream.seen().is_empty(), "a proof sends nothing");
}

#[tokio::test]
async fn what_needs_no_network_generates_before_it_goes_live() {
    let plugin = component("offline");
    let config = |trap_at: &str| {
        format!(
            "[[models]]\nid = 2\nname = \"offline\"\nplugin = \"{plugin}\"\n\
             [models.settings]\ntrap_at = \"{trap_at}\"\n"
        )
    };
    let host = Host::builder().config(config("trap")).start().await;
    let host = host.ready().await;
    let customer = host.customer().await;
    let asked = customer.post("/generate", ask("hello")).await.expect(200);
    assert_eq!(asked["response"], "hello");
    let failed = customer.post("/generate", ask("trap")).await;
    assert_eq!(failed.expect_error(502), "plugin_failed");

    // what it is asked at its rehearsal
    host.write_config(&config("Hello"));
    until_problem_says(&host, "it failed at a short request").await;
    customer.post("/generate", ask("hello")).await.expect(200);
}

#[tokio::test]
async fn a_restart_compiles_nothing_again() {
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let (host, _) = with_file(&upstream, "").await;
    assert_eq!(compiled(&host), [false]);
    let mut host = host.restart().await.ready().await;
    assert_eq!(compiled(&host), [true]);

    // what is not this user's alone is not run
    let code = host.dir().join("data/cache/code");
    let mode = |mode| std::fs::set_permissions(&code, Permissions::from_mode(mode));
    let found = std::fs::metadata(&code)
        .expect("a folder")
        .permissions()
        .mode();
    assert_eq!(found & 0o777, 0o700);
    mode(0o777).expect("a folder");
    host.signal("TERM");
    host.wait_exit().await;
    let refused = Command::new(&*BINARY)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .current_dir(host.dir())
        .output()
        .expect("it runs");
    assert!(!refused.status.success());
    let refusal = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refusal.contains("cache/code holds machine code") && refusal.contains("777"),
        "{refusal}"
    );
    mode(0o700).expect("a folder");
    let host = host.restart().await.ready().await;
    assert_eq!(compiled(&host), [true]);
}

/// Whether each component that was compiled came from the cache.
fn compiled(host: &Host) -> Vec<bool> {
    let log = host.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("component compiled"));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .map(|line| find(&line, "is_cached").expect("a field"))
        .collect()
}

/// A field of a line of the log, at whatever depth.
fn find(line: &Value, name: &str) -> Option<bool> {
    let fields = line.as_object()?;
    let own = fields.get(name).and_then(Value::as_bool);
    own.or_else(|| fields.values().find_map(|value| find(value, name)))
}
