//! The rules of `host/ARCHITECTURE.md` that can be read off the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Modules from the top down: each uses those of lower lines only.
const LAYERS: [&[&str]; 9] = [
    &["main"],
    &["cli"],
    &["app", "shutdown", "telemetry"],
    &["http"],
    &["generate", "keys", "reload", "billing"],
    &["models", "store", "limits"],
    &["config"],
    &["clock"],
    &["money"],
];

/// What `cli` needs of its peers' neighbours below is given by the layers; of
/// the modules on one line, these uses are meant.
const MEANT: [(&str, &str); 0] = [];

/// Crates, and the only places that may name them.
const FENCES: [(&str, &[&str]); 15] = [
    ("axum", &["http", "app.rs"]),
    ("axum_extra", &["http"]),
    ("tower_http", &["http"]),
    ("maud", &["http/dashboard"]),
    ("sqlx", &["store"]),
    ("wasmtime", &["models/component"]),
    ("wasmtime_wasi", &["models/component"]),
    ("wasmtime_wasi_http", &["models/component"]),
    ("gpt2", &["models/native"]),
    ("candle_core", &[]),
    ("tokenizers", &[]),
    ("governor", &["limits"]),
    ("stripe", &["billing"]),
    ("notify", &["reload.rs"]),
    ("clap", &["cli"]),
];

/// Longest source file, in lines.
const LONGEST: usize = 500;
const LONGEST_TEST: usize = 400;

/// Merged migrations with their SHA-256: a database that ran one keeps its checksum.
const MIGRATIONS: [(&str, &str); 1] =
    [("0001_start.sql", "@@MIGRATION@@")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// All files below a folder whose names end so, with their text.
fn files(folder: &Path, end: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().is_some_and(|name| name.ends_with(end)) {
            let text = std::fs::read_to_string(&path).expect("text");
            found.push((path, text));
        }
    }
    found
}

/// The host's sources: the path below `src`, and the code without comments and
/// without the unit tests at its end.
fn sources() -> Vec<(String, String)> {
    let folder = root().join("host/src");
    let found: Vec<_> = files(&folder, ".rs")
        .into_iter()
        .map(|(path, text)| {
            let name = path.strip_prefix(&folder).expect("below").to_str().expect("text").to_owned();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
            (name, lines.collect::<Vec<_>>().join("\n"))
        })
        .collect();
    assert!(found.len() > 30, "these are not the sources");
    found
}

/// The module of the crate's root that a file belongs to.
fn module(file: &str) -> &str {
    file.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&module));
    found.unwrap_or_else(|| panic!("{module} has no layer: give it one here and in host/ARCHITECTURE.md"))
}

/// Modules of the root that the code names after `crate::`, in groups too.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let mut depth = 0;
        let mut name = String::new();
        for c in after.chars() {
            match c {
                c if c.is_alphanumeric() || c == '_' => name.push(c),
                '{' => {
                    depth += 1;
                    name.clear();
                }
                _ => {
                    if depth <= 1 && !name.is_empty() {
                        found.insert(std::mem::take(&mut name));
                    }
                    name.clear();
                    match c {
                        '}' => depth -= 1,
                        // the rest of this path is inside the module
                        ':' if depth == 1 => depth = 2,
                        ',' if depth == 2 => depth = 1,
                        _ => {}
                    }
                    if depth <= 0 {
                        break;
                    }
                }
            }
        }
    }
    found
}
