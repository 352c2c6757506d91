//! What is seen of files, and what of them is not even looked at.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{GPT2, Host, eventually};
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

/// As the server's own log, if it is written to the folder that the server runs in.
#[tokio::test]
async fn what_is_written_beside_the_file_wakes_nobody() {
    let host = Host::start().await.ready().await;
    let woken = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("threads");
        let status = |thread: PathBuf| std::fs::read_to_string(thread.join("status"));
        let threads = threads.map(|thread| status(thread.expect("a thread").path()));
        let watches = threads.map(|status| status.expect("its status"));
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
