//! Downloads from a local server that speaks the hub's paths.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::fixture;
use crate::checkpoint::{GENERATION, Refusal, WEIGHTS};
use crate::source::hub::{Hub, fetch};

/// The weights' first piece.
const FIRST: &str = "0-99999";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, `owner/model`.
struct FakeHub {
    endpoint: String,
    /// Paths asked for, with their ranges.
    asked: Arc<Mutex<Vec<String>>>,
    fault: Arc<Mutex<Option<Fault>>>,
}

/// What goes wrong with the weights.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Other bytes than the checksum says.
    Damaged,
    /// The connection ends after the first piece, once.
    CutOnce,
    /// An ETag that leaves the folder it is joined to.
    Outside,
    /// The first piece takes a while.
    Slow,
    /// What is not there is said to be a failure of the hub.
    Failing,
    /// All pieces are elsewhere, where they are refused.
    Elsewhere,
}

impl FakeHub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let this = Self {
            endpoint,
            asked: Arc::default(),
            fault: Arc::default(),
        };
        let (asked, fault) = (Arc::clone(&this.asked), Arc::clone(&this.fault));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (asked, fault) = (Arc::clone(&asked), Arc::clone(&fault));
                thread::spawn(move || serve(stream, &asked, &fault));
            }
        });
        this
    }

    fn hub(&self) -> Hub {
        Hub {
            endpoint: Some(self.endpoint.clone()),
            token: None,
            chunk: 100_000,
        }
    }

    /// How often this file and range were asked for.
    fn times(&self, asked: &str) -> usize {
        let all = self.asked.lock().unwrap();
        all.iter().filter(|path| path.ends_with(asked)).count()
    }

    /// Fetches its model.
    fn fetch(&self, cache: &TempDir) -> Result<PathBuf, Refusal> {
        fetch(
            &self.hub(),
            "owner/model",
            None,
            "main",
            cache.path().to_str(),
        )
    }
}

/// A hub that is not there.
fn nowhere() -> Hub {
    Hub {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        token: None,
        chunk: 100_000,
    }
}

/// Answers one request and closes the connection.
fn serve(mut stream: TcpStream, asked: &Mutex<Vec<String>>, fault: &Mutex<Option<Fault>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let range = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("range: bytes=")
                .map(str::to_owned)
        })
        .last()
        .unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default();
    asked.lock().unwrap().push(format!("{path} {range}"));
    let revisions = ["main", COMMIT].map(|revision| format!("/owner/model/resolve/{revision}/"));
    let found = revisions.iter().find_map(|start| path.split_once(start));
    let (_, file) = found.unwrap_or_default();
    let fault_now = *fault.lock().unwrap();
    if fault_now == Some(Fault::Elsewhere) && file == WEIGHTS && range == FIRST {
        let location = "/elsewhere?X-Amz-Signature=secret";
        write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        .ok();
        return;
    }
    let read = match file {
        GENERATION => Ok(b"{}".to_vec()),
        _ => std::fs::read(fixture("plain").join(file)),
    };
    let Ok(mut bytes) = read else {
        let status = match *fault.lock().unwrap() {
            Some(Fault::Failing) => "500 Internal Server Error",
            _ => "404 Not Found",
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        .ok();
        return;
    };
    if path.ends_with(WEIGHTS) && range == FIRST && *fault.lock().unwrap() == Some(Fault::Slow) {
        // hf-hub tries for five seconds to be the one who downloads
        thread::sleep(Duration::from_secs(3));
    }
    let mut etag: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut ends = range.split('-').map(|end| end.parse::<usize>().unwrap());
    let (start, stop) = (
        ends.next().unwrap(),
        ends.next().unwrap().min(bytes.len() - 1),
    );
    let size = bytes.len();
    let is_weights = file == WEIGHTS;
    let mut fault = fault.lock().unwrap();
    if is_weights && *fault == Some(Fault::Damaged) {
        bytes[1000] ^= 1;
    }
    if *fault == Some(Fault::Outside) {
        etag = "../../outside".to_owned();
    }
    let mut piece = &bytes[start..=stop];
    let length = piece.len();
    if is_weights && *fault == Some(Fault::CutOnce) && start > 0 {
        piece = &piece[..length / 2];
        *fault = None;
    }
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n\
         content-range: bytes {start}-{stop}/{size}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .ok();
    stream.write_all(piece).ok();
}

#[test]
fn a_model_is_fetched_into_the_hubs_cache_once() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let folder = server.fetch(&cache).unwrap();
    assert!(
        folder.ends_with(format!("models--owner--model/snapshots/{COMMIT}")),
        "{}",
        folder.display()
    );
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let got = std::fs::read(folder.join(file)).unwrap();
        assert_eq!(
            got,
            std::fs::read(fixture("plain").join(file)).unwrap(),
            "{file}"
        );
    }
    let asked = server.asked.lock().unwrap().len();
    server.fetch(&cache).unwrap();
    assert_eq!(
        server.asked.lock().unwrap().len(),
        asked,
        "the cache serves"
    );
}

#[test]
fn a_download_goes_on_where_it_was_cut_off() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    *server.fault.lock().unwrap() = Some(Fault::CutOnce);
    server.fetch(&cache).unwrap();
    assert!(server.fault.lock().unwrap().is_none(), "it was cut off");
    // the first piece came whole, the second was cut off
    let times = |range: &str| server.times(&format!("/{WEIGHTS} {range}"));
    assert_eq!((times(FIRST), times("100000-199999")), (1, 2));
}

#[test]
fn a_file_that_somebody_else_downloads_is_waited_for() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    *server.fault.lock().unwrap() = Some(Fault::Slow);
    let first_piece = format!("/{WEIGHTS} {FIRST}");
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| server.fetch(&cache));
        while server.times(&first_piece) == 0 && !first.is_finished() {
            thread::yield_now();
        }
        let second = server.fetch(&cache);
        (first.join().unwrap(), second)
    });
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(server.times(&first_piece), 1);
}

#[test]
fn damaged_weights_are_refused_and_fetched_anew() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    *server.fault.lock().unwrap() = Some(Fault::Damaged);
    let refusal = server.fetch(&cache).unwrap_err();
    assert!(refusal.to_string().contains("checksum"), "{refusal}");
    *server.fault.lock().unwrap() = None;
    server.fetch(&cache).unwrap();
}

#[test]
fn a_cached_file_that_was_damaged_since_is_fetched_anew() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let folder = server.fetch(&cache).unwrap();
    let weights = folder.join("model.safetensors");
    let sound = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &sound[..1000]).unwrap();
    server.fetch(&cache).unwrap();
    assert_eq!(std::fs::read(&weights).unwrap(), sound);
}

/// As by a tool that had no use for it.
#[test]
fn a_file_that_is_not_with_the_weights_is_asked_for_at_their_commit() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let folder = server.fetch(&cache).unwrap();
    let file = folder.join(GENERATION);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(server.fetch(&cache).unwrap(), folder);
    assert_eq!(std::fs::read(&file).unwrap(), b"{}");
    let all = server.asked.lock().unwrap().clone();
    let asked = |path: &&String| path.contains(&format!("/{COMMIT}/"));
    let asked: Vec<_> = all.iter().filter(asked).collect();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|path| path.contains(GENERATION)),
        "{all:?}"
    );

    // a hub that is not there has none
    std::fs::remove_file(&file).unwrap();
    let nowhere = nowhere();
    let found = fetch(&nowhere, "owner/model", None, "main", cache.path().to_str());
    assert_eq!(found.unwrap(), folder);
    assert!(!file.exists());
}

#[test]
fn where_a_download_is_redirected_to_is_not_told() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    *server.fault.lock().unwrap() = Some(Fault::Elsewhere);
    let refusal = server.fetch(&cache).unwrap_err().to_string();
    assert!(refusal.contains("404"), "{refusal}");
    assert!(!refusal.contains("secret"), "{refusal}");
}

#[test]
fn an_etag_cannot_name_a_file_outside_the_cache() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    *server.fault.lock().unwrap() = Some(Fault::Outside);
    let refusal = server.fetch(&cache).unwrap_err();
    assert!(refusal.to_string().contains("no file name"), "{refusal}");
    assert!(!cache.path().join("outside").exists());
}

#[test]
fn a_file_is_missing_by_the_hubs_status_and_not_by_its_address() {
    let (server, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let fetch = || {
        let hub = Hub {
            endpoint: Some(format!("{}/404", server.endpoint)),
            ..server.hub()
        };
        fetch(&hub, "owner/model", None, "main", cache.path().to_str())
    };
    *server.fault.lock().unwrap() = Some(Fault::Failing);
    let refusal = fetch().unwrap_err();
    assert!(refusal.to_string().contains("500"), "{refusal}");
    *server.fault.lock().unwrap() = None;
    fetch().unwrap();
}

#[test]
fn a_hub_that_is_not_there_or_has_no_such_model_says_so_soon() {
    let cache = tempfile::tempdir().unwrap();
    let refusal = fetch(
        &nowhere(),
        "owner/model",
        None,
        "main",
        cache.path().to_str(),
    )
    .unwrap_err();
    assert!(refusal.to_string().contains("refused"), "{refusal}");
    let server = FakeHub::start();
    let refusal = fetch(
        &server.hub(),
        "owner/other",
        None,
        "main",
        cache.path().to_str(),
    )
    .unwrap_err();
    assert!(refusal.to_string().contains("404"), "{refusal}");
}
