//! `model-host plugin new`

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use include_dir::{Dir, DirEntry, include_dir};
use toml::{Table, Value};

/// The projects to begin with; `{{name}}` in them is the plugin's name.
static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src/cli/plugin/templates");
/// The SDK as it is in this version: it is in no registry.
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugin-sdk");
/// Where the SDK's manifest inherits from.
const WORKSPACE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
/// The contract.
const WIT: &str = "wit/0.1";

/// The longest name, in characters.
const NAME_LIMIT: usize = 64;

#[derive(Debug, Args)]
pub struct Options {
    /// Name of the plugin, and of the folder to make
    name: String,
    /// Language to write it in
    #[arg(long, value_enum)]
    lang: Language,
    /// An adapter that calls an API over HTTP
    #[arg(long)]
    http: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Language {
    Rust,
    Python,
    Javascript,
}

/// Makes a project in a new folder.
///
/// # Errors
/// When the name cannot be one, or the folder exists.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let name = &options.name;
    check_name(name)?;
    let template = match (options.lang, options.http) {
        (Language::Rust, false) => "rust",
        (Language::Rust, true) => "rust-http",
        (Language::Python, false) => "python",
        (Language::Python, true) => "python-http",
        (Language::Javascript, false) => "javascript",
        (Language::Javascript, true) => "javascript-http",
    };
    let template = TEMPLATES.get_dir(template).context("no template")?;
    let folder = PathBuf::from(name);
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{name} exists; a new plugin gets a new folder")
        }
        made => made.with_context(|| format!("cannot make the folder {name}"))?,
    }
    write(template, template.path(), &folder, &|text| {
        text.replace("{{name}}", name)
    })?;
    match options.lang {
        Language::Rust => {
            write(&SDK, Path::new(""), &folder.join("sdk"), &str::to_owned)?;
            let manifest = folder.join("sdk/Cargo.toml");
            let alone = standalone(&std::fs::read_to_string(&manifest)?, WORKSPACE)?;
            std::fs::write(&manifest, alone)?;
        }
        Language::Python | Language::Javascript => {
            let wit = SDK.get_dir(WIT).context("no contract")?;
            write(wit, wit.path(), &folder.join("wit"), &str::to_owned)?;
        }
    }
    println!("{name}/ is ready. Next: model-host plugin build {name}");
    Ok(())
}

/// A name that is fit for a folder, a crate and a package.
fn check_name(name: &str) -> anyhow::Result<()> {
    let is_fit = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.ends_with('-')
        && name.len() <= NAME_LIMIT;
    ensure!(
        is_fit,
        "{name:?} cannot be a plugin's name: take lower-case letters, digits and dashes, a letter first, \
         at most {NAME_LIMIT} characters"
    );
    Ok(())
}

/// Writes an embedded folder, whose paths begin with `root`, to `folder`.
fn write(
    from: &Dir<'_>,
    root: &Path,
    folder: &Path,
    change: &dyn Fn(&str) -> String,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder.join(from.path().strip_prefix(root)?))?;
    for entry in from.entries() {
        let path = folder.join(entry.path().strip_prefix(root)?);
        match entry {
            DirEntry::Dir(below) => write(below, root, folder, change)?,
            DirEntry::File(file) => {
                let text = file.contents_utf8().context("a template that is no text")?;
                std::fs::write(&path, change(text)).with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// A manifest without what it inherits from its workspace: that is written out.
fn standalone(manifest: &str, workspace: &str) -> anyhow::Result<String> {
    let mut manifest: Table = manifest.parse()?;
    let workspace: Table = workspace.parse()?;
    let workspace = workspace
        .get("workspace")
        .and_then(Value::as_table)
        .context("no workspace")?;
    // lints are a matter of the repository, not of who uses the SDK
    manifest.remove("lints");
    for (name, value) in &mut manifest {
        inherit(name, value, workspace);
    }
    Ok(toml::to_string(&manifest)?)
}

/// Replaces `x.workspace = true` in a table of the manifest, and in those below it.
fn inherit(name: &str, value: &mut Value, workspace: &Table) {
    let Some(table) = value.as_table_mut() else {
        return;
    };
    for (key, value) in table {
        let inherits = value.get("workspace").and_then(Value::as_bool) == Some(true);
        match workspace
            .get(name.trim_start_matches("dev-"))
            .and_then(|table| table.get(key))
        {
            Some(inherited) if inherits => {
                let own = value.as_table_mut().map(std::mem::take).unwrap_or_default();
                *value = with(inherited.clone(), own);
            }
            _ => inherit(key, value, workspace),
        }
    }
}

/// An inherited value with what the manifest adds to it, such as features.
fn with(inherited: Value, mut own: Table) -> Value {
    own.remove("workspace");
    if own.is_empty() {
        return inherited;
    }
    let mut table = match inherited {
        Value::Table(table) => table,
        version => Table::from_iter([("version".to_owned(), version)]),
    };
    table.extend(own);
    Value::Table(table)
}

#[cfg(test)]
mod tests {
    use super::{SDK, WORKSPACE, check_name, standalone};

    #[test]
    fn names_are_fit_or_refused() {
        for good in ["a", "echo", "my-model-2"] {
            check_name(good).expect(good);
        }
        let long = "a".repeat(65);
        for bad in [
            "", "Echo", "-a", "a-", "2go", "a_b", "../a", "a/b", "ä", "a b", &long,
        ] {
            let error = check_name(bad).unwrap_err().to_string();
            assert!(error.contains("cannot be a plugin's name"), "{error}");
        }
    }

    #[test]
    fn a_manifest_stands_alone() {
        let manifest = "[package]\nname = \"a\"\nedition.workspace = true\n[lints]\nworkspace = true\n\
            [dependencies]\nb = { workspace = true, features = [\"f\"] }\nc.workspace = true\nd = \"4\"\n\
            [target.x.dependencies]\nc.workspace = true\n";
        let workspace = "[workspace.package]\nedition = \"2024\"\n\
            [workspace.dependencies]\nb = \"2\"\nc = { version = \"3\", features = [\"g\"] }\n";
        let alone: toml::Table = standalone(manifest, workspace).unwrap().parse().unwrap();
        let expected = "[package]\nname = \"a\"\nedition = \"2024\"\n\
            [dependencies]\nb = { version = \"2\", features = [\"f\"] }\n\
            c = { version = \"3\", features = [\"g\"] }\nd = \"4\"\n\
            [target.x.dependencies]\nc = { version = \"3\", features = [\"g\"] }\n";
        assert_eq!(alone, expected.parse().unwrap());
    }

    #[test]
    fn the_sdk_stands_alone() {
        let manifest = SDK.get_file("Cargo.toml").unwrap().contents_utf8().unwrap();
        let alone = standalone(manifest, WORKSPACE).unwrap();
        assert!(!alone.contains("workspace"), "{alone}");
    }
}
