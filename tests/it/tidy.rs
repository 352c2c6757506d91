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
    &["generate", "keys", "reload", "billing", "conformance"],
    &["models", "store", "limits"],
    &["config"],
    &["clock", "cohort"],
    &["money"],
];

/// Crates, and the only places that may name them.
const FENCES: [(&str, &[&str]); 19] = [
    ("axum", &["http"]),
    ("axum_extra", &["http"]),
    ("hyper", &["http", "models/component/network"]),
    ("hyper_util", &["http", "models/component/network"]),
    ("hyper_rustls", &["models/component/network"]),
    ("tower_http", &["http"]),
    ("maud", &["http/dashboard"]),
    ("sqlx", &["store"]),
    ("wasmtime", &["models/component"]),
    ("wasmtime_wasi", &["models/component"]),
    ("wasmtime_wasi_http", &["models/component"]),
    ("transformer", &["models/native"]),
    ("candle_core", &[]),
    ("tokenizers", &[]),
    ("redis", &["limits"]),
    ("stripe", &["billing"]),
    ("notify", &["reload/watch.rs"]),
    ("oci_client", &["models/component"]),
    ("clap", &["cli"]),
];

/// Longest source file, in lines.
const LONGEST: usize = 500;
const LONGEST_TEST: usize = 400;

/// Merged migrations with their SHA-256: a database that ran one keeps its checksum.
const MIGRATIONS: [(&str, &str); 13] = [
    (
        "postgres/0001_start.sql",
        "8d3ed484e26fd3245cb6eaa641eb255350e3809c31f1fd62b4c74d39fc74fc96",
    ),
    (
        "postgres/0002_customer_limits.sql",
        "86348f5717ad3149edea17d404b684ae0c60e981ba1f7ce1732ee33c968a0425",
    ),
    (
        "postgres/0003_usage_sums.sql",
        "d76f92f5b6843458d03c81af20963b39eefcbc50e40888d34950feb048ef895e",
    ),
    (
        "postgres/0004_usage_sums_hours.sql",
        "78fe1d893eb14ce21664f39fe1816f89034ff1c66aebda1cca900362f490003a",
    ),
    (
        "sqlite/0001_start.sql",
        "a5ede68138489a41e32353d497e412102214eb810ba927c934ff2c5475499bb8",
    ),
    (
        "sqlite/0002_answers.sql",
        "f6cc4e13bacf6c46a716bbc358b8939f7bdf90ae6094d8ef1301a9a5257ac91e",
    ),
    (
        "sqlite/0003_ledger.sql",
        "6c471a2ba21bb0ace6dac9003aae008740783d08536a0a624e303baf47081e25",
    ),
    (
        "sqlite/0004_keys.sql",
        "9d496d0c90d2fb6f814b97358824e37cb357f08e656375b6a8862841335f9222",
    ),
    (
        "sqlite/0005_limits.sql",
        "2841b46e3cf3e42edb6deb50319f70d24401e083ade9a17ceceb19fe53a83717",
    ),
    (
        "sqlite/0006_notices.sql",
        "b44a40e35ee419384b3d18f3eb4fbf9a30264ece355eed6680dde5e259bc2ced",
    ),
    (
        "sqlite/0007_customer_limits.sql",
        "7114203fdb656cdc4b1950cde8803d6dae766d30040a2e4463c383db40a966e2",
    ),
    (
        "sqlite/0008_usage_sums.sql",
        "8e4c3e187d8657760e5f95ffb59901addcd833570b8f4185ac9f0759e7b62d6f",
    ),
    (
        "sqlite/0009_journal.sql",
        "f8774813f803f6c8d0b32e543c8f6379272814928e8ea0e5596e99229aada4d8",
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
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
            let name = path
                .strip_prefix(&folder)
                .expect("below")
                .to_str()
                .expect("text")
                .to_owned();
            let code = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            let lines = code
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default());
            (name, lines.collect::<Vec<_>>().join("\n"))
        })
        .collect();
    assert!(found.len() > 30, "these are not the sources");
    found
}

/// The module of the crate's root that a file belongs to.
fn module(file: &str) -> &str {
    file.split('/')
        .next()
        .unwrap_or_default()
        .trim_end_matches(".rs")
}

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&module));
    found.unwrap_or_else(|| {
        panic!("{module} has no layer: give it one here and in host/ARCHITECTURE.md")
    })
}

/// Modules of the root that the code names after `crate::`, in groups too.
fn used(code: &str) -> BTreeSet<&str> {
    let paths = code
        .split("crate::")
        .skip(1)
        .flat_map(|after| match after.strip_prefix('{') {
            Some(group) => items(group),
            None => vec![after],
        });
    let names = paths.map(|path| {
        path.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
    });
    names.filter(|name| !name.is_empty()).collect()
}

/// The items of a group up to its closing brace, each from its beginning.
fn items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (1, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (c == ',' && depth == 1) {
            found.push(group[start..at].trim());
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let mut uses = 0;
    for (file, code) in sources() {
        let module = module(&file);
        for used in used(&code) {
            uses += 1;
            let is_below = used == module || layer(used) > layer(module);
            assert!(
                is_below,
                "host/src/{file} uses {used}, which does not stand below {module}"
            );
        }
        // a path out of the module by `super` would be seen by none of this
        let depth = file.trim_end_matches("/mod.rs").split('/').count();
        let out = "super::".repeat(depth);
        assert!(
            !code.contains(&out),
            "host/src/{file} leaves its module by {out}"
        );
    }
    assert!(uses > 50, "the uses were not found");
}

#[test]
fn groups_of_uses_are_read() {
    let code = "use crate::a::b;\nuse crate::{\n c::{d, e}, f, g::h,\n};\nfn i() { crate::j::k() }";
    assert_eq!(
        used(code).into_iter().collect::<Vec<_>>(),
        ["a", "c", "f", "g", "j"]
    );
}

#[test]
fn crates_stay_behind_their_fences() {
    for (file, code) in sources() {
        for (name, places) in FENCES {
            let is_named = [format!("{name}::"), format!("use {name};")]
                .iter()
                .any(|naming| {
                    code.match_indices(naming.as_str()).any(|(at, _)| {
                        let before = code[..at].chars().next_back().unwrap_or(' ');
                        !before.is_alphanumeric() && !matches!(before, '_' | ':')
                    })
                });
            let is_inside = places
                .iter()
                .any(|place| file == *place || file.starts_with(&format!("{place}/")));
            assert!(
                !is_named || is_inside,
                "host/src/{file} names {name}, which belongs to {places:?}"
            );
        }
    }
}

#[test]
fn no_file_is_longer_than_a_room() {
    for (folder, longest) in [
        ("host/src", LONGEST),
        ("plugin-sdk/src", LONGEST),
        ("plugins/transformer/src", LONGEST),
        ("plugins/anthropic/src", LONGEST),
        ("plugins/lawgent-thinking/src", LONGEST),
        ("plugins/misbehave/src", LONGEST),
        ("plugins/offline/src", LONGEST),
        ("plugins/openai/src", LONGEST),
        ("plugins/openai-format/src", LONGEST),
        ("tests", LONGEST_TEST),
    ] {
        for (path, text) in files(&root().join(folder), ".rs") {
            let lines = text.lines().count();
            assert!(
                lines <= longest,
                "{}: {lines} lines of at most {longest}",
                path.display()
            );
        }
    }
}

#[test]
fn merged_migrations_stay_as_they_are() {
    let folder = root().join("migrations");
    let mut found: Vec<_> = files(&folder, ".sql")
        .into_iter()
        .map(|(path, text)| {
            let name = path.strip_prefix(&folder).expect("below");
            let name = name.to_string_lossy().into_owned();
            let hash: String = Sha256::digest(text)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            (name, hash)
        })
        .collect();
    found.sort();
    let kept = MIGRATIONS.map(|(name, hash)| (name.to_owned(), hash.to_owned()));
    assert_eq!(found, kept, "add a migration with its hash; never edit one");
}

#[test]
fn the_order_of_json_is_kept_outside_of_tests_too() {
    // a crate of the tests' turns it on for all that is built with them
    let manifest = std::fs::read_to_string(root().join("host/Cargo.toml")).expect("a manifest");
    let line = manifest
        .lines()
        .find(|line| line.starts_with("serde_json = "))
        .expect("serde_json");
    assert!(line.contains("\"preserve_order\""), "{line}");
}

#[test]
fn crates_come_from_the_one_registry() {
    for lock in ["Cargo.lock", "plugins/Cargo.lock"] {
        let text = std::fs::read_to_string(root().join(lock)).expect("a lock file");
        let sources: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("source = "))
            .collect();
        let registry = "\"registry+https://github.com/rust-lang/crates.io-index\"";
        assert_eq!(
            sources.into_iter().collect::<Vec<_>>(),
            [registry],
            "{lock}"
        );
    }
    let own = std::fs::read_to_string(root().join(".cargo/config.toml")).unwrap_or_default();
    assert!(
        !own.contains("[source") && !own.contains("registr"),
        "{own}"
    );
}
