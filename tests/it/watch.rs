//! What is seen of files, and what of them is not even looked at.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::component::misbehave;
use crate::harness::{GPT2, Host, Setup, component, eventually};
use crate::hot::{bytes, until_plugin_is, until_problem_says};
use crate::models::shown;

/// Kubernetes replaces the files of a volume by a link to their folder, whose name no file has.
#[tokio::test]
async fn a_file_behind_links_goes_live_when_a_link_of_them_is_replaced() {
    let host = Host::start().await.ready().await;
    let file = host.dir().join("model-host.toml");
    let mut before: Option<PathBuf> = None;
    // the third is refused, and what follows is seen all the same
    for price in [1, 2, -1, 3, 4] {
        let folder = host.dir().join(format!("..{price}"));
        std::fs::create_dir(&folder).expect("a folder");
        let config =
            format!("{GPT2}price_per_million = {{ prompt = {price}.0, completion = 1.0 }}\n");
        std::fs::write(folder.join("model-host.toml"), config).expect("a file");
        let link = |to: &Path, name: &str| {
            let new = host.dir().join("new");
            symlink(to, &new).expect("a link");
            std::fs::rename(new, host.dir().join(name)).expect("a link");
        };
        link(folder.file_name().map(Path::new).expect("a name"), "..data");
        if !file.is_symlink() {
            link(Path::new("..data/model-host.toml"), "model-host.toml");
        }
        if let Some(before) = before.replace(folder) {
            std::fs::remove_dir_all(before).expect("a folder");
        }
        eventually("the file is read", async || {
            if price > 0 {
                return shown(&host, 1).await["price_per_million"]["prompt"] == f64::from(price);
            }
            let models = host.admin().get("/models").await.expect(200);
            models["configuration_error"].is_string()
        })
        .await;
    }
}

/// By `cat` or `scp`, after the one before it was moved away.
#[tokio::test]
async fn a_new_file_is_read_once_it_is_written() {
    let host = Host::start().await.ready().await;
    let path = host.dir().join("model-host.toml");
    std::fs::rename(&path, host.dir().join("before")).expect("a file");
    let mut file = std::fs::File::create(&path).expect("a file");
    // longer than a file is left alone before it is read
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(shown(&host, 1).await["status"], "ready");
    }
    let config = format!("{GPT2}price_per_million = {{ prompt = 7.0, completion = 1.0 }}\n");
    file.write_all(config.as_bytes()).expect("written");
    drop(file);
    eventually("the price is live", async || {
        shown(&host, 1).await["price_per_million"]["prompt"] == 7.0
    })
    .await;
    let log = host.log();
    assert!(!log.contains("removed: [\\\"gpt2"), "{log}");
}

/// A server whose model number 2 is the component at this path.
fn with_component(path: &str) -> Setup {
    let config = misbehave("http://127.0.0.1:9/", "model_name = \"m\"");
    let config = config.replace(&component("misbehave"), path);
    Host::builder().config(config)
}

/// Makes a component's file with its folders.
fn put(host: &Host, path: &str, plugin: &str) {
    let path = host.dir().join(path);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, bytes(plugin)).expect("a file");
}

#[tokio::test]
async fn a_component_goes_live_when_its_folder_is_exchanged() {
    let host = with_component("plugins/x/x.wasm")
        .file("plugins/x/x.wasm", bytes("misbehave"))
        .start()
        .await
        .ready()
        .await;
    let moved = |from: &str, to: &str| {
        let [from, to] = [from, to].map(|name| host.dir().join("plugins").join(name));
        std::fs::rename(from, to).expect("a folder");
    };
    for (number, plugin) in [(1, "lawgent-thinking"), (2, "misbehave")] {
        put(&host, "plugins/x.new/x.wasm", plugin);
        moved("x", &format!("x.{number}"));
        moved("x.new", "x");
        until_plugin_is(&host, plugin).await;
    }
    // the folder that is there now is the one that is watched
    put(&host, "plugins/x/x.wasm", "lawgent-thinking");
    until_plugin_is(&host, "lawgent-thinking").await;
}

#[tokio::test]
async fn a_component_goes_live_when_a_link_to_its_folder_is_replaced() {
    let host = with_component("current/x.wasm").start().await.ready().await;
    put(&host, "releases/v1/x.wasm", "misbehave");
    put(&host, "releases/v2/x.wasm", "lawgent-thinking");
    for (release, plugin) in [
        ("v1", "misbehave"),
        ("v2", "lawgent-thinking"),
        ("v1", "misbehave"),
    ] {
        let linked = Command::new("ln")
            .args(["-sfn", &format!("releases/{release}"), "current"])
            .current_dir(host.dir())
            .status();
        assert!(linked.expect("ln runs").success());
        until_plugin_is(&host, plugin).await;
    }
}

/// As by `cargo clean` and `cargo build`, which links what it has built.
#[tokio::test]
async fn a_component_goes_live_when_its_folders_are_made_anew() {
    let path = "target/wasm32-wasip2/release/x.wasm";
    let host = with_component(path).start().await.ready().await;
    let target = host.dir().join("target");
    for plugin in ["misbehave", "lawgent-thinking", "misbehave"] {
        if target.exists() {
            std::fs::remove_dir_all(&target).expect("a folder");
            until_problem_says(&host, "cannot read it").await;
        }
        let built = "target/wasm32-wasip2/release/deps/x.wasm";
        put(&host, built, plugin);
        std::fs::hard_link(host.dir().join(built), host.dir().join(path)).expect("a link");
        until_plugin_is(&host, plugin).await;
    }
}

/// As the server's own log, if it is written to the folder that the server runs in.
#[tokio::test]
async fn what_is_written_beside_the_file_wakes_nobody() {
    let host = Host::start().await.ready().await;
    let woken = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("threads");
        let status = |thread: PathBuf| std::fs::read_to_string(thread.join("status"));
        let threads = threads.map(|thread| status(thread.expect("a thread").path()));
        // those that have ended meanwhile have none
        let watches = threads.filter_map(Result::ok);
        let watches: Vec<_> = watches.filter(|status| status.contains("notify")).collect();
        assert!(!watches.is_empty());
        let switches = |status: &String| {
            let lines = status.lines();
            let mut counts = lines.filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            counts
                .next()
                .and_then(|count| count.trim().parse::<u32>().ok())
        };
        watches
            .iter()
            .map(|status| switches(status).expect("a count"))
            .sum::<u32>()
    };
    let mut log = std::fs::File::create(host.dir().join("log")).expect("a file");
    let before = woken();
    for _ in 0..100 {
        log.write_all(b"a line\n").expect("written");
        // time enough to be woken
        host.anyone().get("/health").await.expect(200);
    }
    let times = woken() - before;
    assert!(times < 20, "{times} times");
}
