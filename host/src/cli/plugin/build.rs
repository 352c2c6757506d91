//! `model-host plugin build`

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;

/// The target of components.
const TARGET: &str = "wasm32-wasip2";
/// The world that a Python project is built for, unless its pyproject.toml says
/// `tool.model-host.world`.
const WORLD: &str = "local-backend";

#[derive(Debug, Args)]
pub struct Options {
    /// Folder of the project
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

/// Builds the project and prints where its component is.
///
/// # Errors
/// When it is no project, or its tools fail; they say why themselves.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let folder = &options.folder;
    let has = |file: &str| folder.join(file).is_file();
    let component = if has("Cargo.toml") {
        rust(folder)?
    } else if has("pyproject.toml") {
        python(folder)?
    } else if has("package.json") {
        javascript(folder)?
    } else {
        bail!(
            "{} is no plugin's project: there is no Cargo.toml, pyproject.toml or package.json",
            folder.display()
        );
    };
    let size = std::fs::metadata(&component)
        .with_context(|| format!("{} was not built", component.display()))?
        .len();
    println!("{} ({} KiB)", component.display(), size.div_ceil(1024));
    Ok(())
}

/// By cargo, with the toolchain that it finds; the component is copied beside the
/// manifest.
fn rust(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        let help = match has_target() {
            true => "",
            false => "; the target is missing, run: rustup target add wasm32-wasip2",
        };
        bail!("cargo failed{help}");
    }
    let (mut name, mut built) = (None, None);
    for message in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
        let message = message.context("cannot read what cargo says")?;
        let is_library = message["target"]["crate_types"] == serde_json::json!(["cdylib"]);
        if message["reason"] == "compiler-artifact" && is_library {
            built = message["filenames"][0].as_str().map(PathBuf::from);
            // path+file:///folder#name@version, or …/name#version
            let id = message["package_id"].as_str().unwrap_or_default();
            let (path, rest) = id.rsplit_once('#').unwrap_or((id, ""));
            name = match rest.split_once('@') {
                Some((name, _)) => Some(name.to_owned()),
                None => path.rsplit('/').next().map(str::to_owned),
            };
        }
    }
    let (Some(name), Some(built)) = (name, built) else {
        bail!("the project is no cdylib: give its Cargo.toml [lib] crate-type = [\"cdylib\"]");
    };
    let component = folder.join(name).with_extension("wasm");
    std::fs::copy(&built, &component)
        .with_context(|| format!("cannot copy {} beside the project", built.display()))?;
    Ok(component)
}

/// Whether the compiler has a standard library for the target.
fn has_target() -> bool {
    let libraries = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .output();
    let Ok(output) = libraries else {
        return false;
    };
    Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
}

/// By componentize-py, in a virtual environment of the project.
fn python(folder: &Path) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(folder.join("pyproject.toml"))?;
    let project: toml::Table = text.parse().context("pyproject.toml")?;
    let name = project
        .get("project")
        .and_then(|project| project.get("name")?.as_str());
    let name = name.context("pyproject.toml says no project.name")?;
    let world = project
        .get("tool")
        .and_then(|tool| tool.get("model-host")?.get("world"));
    let world = match world {
        Some(world) => world
            .as_str()
            .context("pyproject.toml: tool.model-host.world is a world's name")?,
        None => WORLD,
    };
    let bin = folder.join(".venv/bin");
    if !bin.join("pip").is_file() {
        run_tool(folder, "python3", ["-m", "venv", ".venv"])
            .context("a virtual environment is needed: on Debian, install python3-venv")?;
    }
    let pip = [
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        "requirements.txt",
    ];
    run_tool(folder, std::path::absolute(bin.join("pip"))?, pip)?;
    let component = format!("{name}.wasm");
    // what the standard library imports is not there in the host either
    let arguments = [
        "--wit-path",
        "wit",
        "--world",
        world,
        "componentize",
        "--stub-wasi",
        "app",
        "-o",
        &component,
    ];
    run_tool(
        folder,
        std::path::absolute(bin.join("componentize-py"))?,
        arguments,
    )?;
    Ok(folder.join(component))
}

/// By the script `build` of the project's package.json.
fn javascript(folder: &Path) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(folder.join("package.json"))?;
    let package: Value = serde_json::from_str(&text).context("package.json")?;
    let name = package["name"]
        .as_str()
        .context("package.json says no name")?;
    run_tool(
        folder,
        "npm",
        ["install", "--no-audit", "--no-fund", "--loglevel=error"],
    )?;
    run_tool(folder, "npm", ["run", "--silent", "build"])?;
    Ok(folder.join(name).with_extension("wasm"))
}

/// Runs a tool in the project's folder. What it says goes to standard error.
fn run_tool<const N: usize>(
    folder: &Path,
    program: impl AsRef<OsStr>,
    arguments: [&str; N],
) -> anyhow::Result<()> {
    let program = program.as_ref();
    let name = Path::new(program).file_name().unwrap_or(program).display();
    let status = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} {} failed", arguments[0]);
    Ok(())
}
