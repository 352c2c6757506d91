//! `model-host plugin`: a project of each language from `new` to its first answered
//! request, and a kit whose every check can fail.

mod adapters;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{BINARY, Host, Setup, component};

/// A folder for projects, and the tools to build them.
struct Workshop(PathBuf);

impl Workshop {
    /// An empty one, always in the same place: what cargo built for its projects is
    /// of use again.
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    /// `model-host plugin …`, with the compiled components of the server that
    /// serves the project later.
    fn plugin(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&*BINARY);
        command
            .current_dir(&self.0)
            .arg("plugin")
            .args(arguments)
            .env("MODEL_HOST_LOG", "off");
        self.toolchain(&mut command);
        command.output().expect("it runs")
    }

    /// Has cargo find a standard library for components: rustup's target, or the
    /// one that `plugins/build` keeps.
    #[expect(
        clippy::disallowed_methods,
        reason = "tests/run says where plugins/build keeps it"
    )]
    fn toolchain(&self, command: &mut Command) {
        // built once for all projects of all tests
        command.env(
            "CARGO_TARGET_DIR",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/plugins"),
        );
        let Ok(sysroot) = std::env::var("MODEL_HOST_TEST_WASM_SYSROOT") else {
            return;
        };
        let wrapper = self.0.join("rustc");
        let script = format!("#!/bin/sh\nexec rustc --sysroot '{sysroot}' \"$@\"\n");
        std::fs::write(&wrapper, script).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&wrapper, mode).expect("a file");
        command
            .env("RUSTC", wrapper)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort");
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// What a path is, as text.
    fn text(&self, file: &str) -> String {
        self.path(file).to_str().expect("text").to_owned()
    }

    /// The server that the project's `model-host.toml` makes.
    fn server(&self, project: &str) -> Setup {
        let config = self.path(&format!("{project}/model-host.toml"));
        let config = std::fs::read_to_string(config).expect("a file");
        let component = self.text(&format!("{project}/{project}.wasm"));
        let config = config.replace(&format!("{project}.wasm"), &component);
        Host::builder()
            .config(config)
            .env("MODEL_HOST_DATA_DIR", self.text("data"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command says that must go well.
#[track_caller]
fn good(output: &Output) -> String {
    let (out, log) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{log}");
    out
}

/// What a command says that must fail.
#[track_caller]
fn bad(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(&output.stdout));
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The names of checks that failed.
fn failed(said: &str) -> Vec<&str> {
    said.lines()
        .filter_map(|line| line.strip_prefix("FAILED"))
        .filter_map(|rest| rest.trim().split_once(':'))
        .map(|(name, _)| name)
        .collect()
}

/// From `new` to an answer of a server that serves the project.
async fn first_answer(lang: &str) {
    let workshop = Workshop::new(lang);
    good(&workshop.plugin(&["new", "my-echo", "--lang", lang]));
    let built = good(&workshop.plugin(&["build", "my-echo"]));
    assert!(built.starts_with("my-echo/my-echo.wasm ("), "{built}");

    let cache = workshop.path("data/cache");
    let cache = cache.to_str().expect("text");
    let file = "my-echo/my-echo.wasm";
    let said = good(&workshop.plugin(&["check", file, "--cache-dir", cache]));
    assert!(
        said.contains("my-echo: 11 ok, 0 failed, 20 skipped"),
        "{said}"
    );
    let said = workshop.plugin(&[
        "run",
        file,
        "--cache-dir",
        cache,
        "--prompt",
        "one two three",
        "--max-tokens",
        "2",
        "--chat",
        "--times",
        "11",
    ]);
    assert_eq!(good(&said), "one two \n");
    for told in ["3 prompt tokens, 2 new tokens", "10 more: p50 "] {
        assert!(text(&said.stderr).contains(told), "{said:?}");
    }

    let host = workshop.server("my-echo").start().await.ready().await;
    let customer = host.customer().await;
    let body = json!({ "text": "Hello there, world", "model_id": 1, "stop": "world" });
    let answer = customer.post("/generate", body).await.expect(200);
    assert_eq!(
        (&answer["response"], &answer["tokens_used"]),
        (&json!("Hello there, "), &json!(5))
    );
}

#[tokio::test]
async fn a_rust_project_comes_to_answer() {
    first_answer("rust").await;
}

#[tokio::test]
async fn a_python_project_comes_to_answer() {
    first_answer("python").await;
}

#[tokio::test]
async fn a_javascript_project_comes_to_answer() {
    first_answer("javascript").await;
}

#[test]
fn the_readmes_plugin_passes() {
    let workshop = Workshop::new("readme");
    let readme = include_str!("../../../plugin-sdk/README.md");
    let code = readme.split("```rust\n").nth(1).expect("a plugin");
    let code = code.split("```").next().expect("its code");
    good(&workshop.plugin(&["new", "echo", "--lang", "rust"]));
    std::fs::write(workshop.path("echo/src/lib.rs"), code).expect("a file");
    good(&workshop.plugin(&["build", "echo"]));
    let said = good(&workshop.plugin(&["check", "echo/echo.wasm"]));
    // it neither estimates nor stops at a text, and says so
    assert!(said.contains("echo: 10 ok, 0 failed, 21 skipped"), "{said}");

    // what it does not follow it must not say that it can
    let claims = code.replace("\"seed\"]", "\"seed\", \"response_format\"]");
    std::fs::write(workshop.path("echo/src/lib.rs"), claims).expect("a file");
    good(&workshop.plugin(&["build", "echo"]));
    let said = bad(&workshop.plugin(&["check", "echo/echo.wasm", "--only", "unpromised"]));
    assert!(said.contains("for response_format,"), "{said}");
}

#[test]
fn a_misbehaving_plugin_is_found_out() {
    let said = bad(&Workshop::new("misbehave").plugin(&["check", &component("misbehave")]));
    assert_eq!(
        failed(&said),
        [
            "unpromised",
            "local-answer",
            "local-max-tokens",
            "local-stop-strings"
        ],
        "{said}"
    );
}

#[test]
fn this_repositorys_plugins_pass() {
    let workshop = Workshop::new("own");
    good(&workshop.plugin(&["check", &component("lawgent-thinking")]));
    for chats in ["openai", "anthropic"] {
        let only = ["--only", "tools", "--only", "unpromised"];
        let file = component(chats);
        let check = [&["check", file.as_str()], &only[..]].concat();
        let said = good(&workshop.plugin(&check));
        assert!(said.contains("2 ok, 0 failed, 0 skipped"), "{said}");
    }
    let said = good(&workshop.plugin(&["check", "gpt2", "--json"]));
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let is_ok = |line: &&Value| line["result"] == "ok";
    assert!(lines.iter().filter(is_ok).count() >= 11, "{said}");
    assert!(
        lines.iter().all(|line| line["result"] != "failed"),
        "{said}"
    );
}

#[test]
fn each_request_has_the_time_of_one() {
    let workshop = Workshop::new("times");
    let offline = component("offline");
    let arguments = ["run", &offline, "--prompt", "a", "--times", "3000"];
    let arguments = [&arguments[..], &["--set", "limits.timeout_ms=1000"]].concat();
    let mut said = workshop.plugin(&arguments);
    // a machine that is at its limit may take a second for one; all take longer each time
    for _ in 0..2 {
        if !said.status.success() {
            said = workshop.plugin(&arguments);
        }
    }
    good(&said);
    assert!(text(&said.stderr).contains("2999 more"), "{said:?}");
}

#[test]
fn mistakes_are_said_clearly() {
    let workshop = Workshop::new("mistakes");
    for folder in ["taken", "worldless"] {
        std::fs::create_dir(workshop.path(folder)).expect("a folder");
    }
    let worldless = "[project]\nname = \"a\"\n[tool.model-host]\nworld = 1\n";
    std::fs::write(workshop.path("worldless/pyproject.toml"), worldless).expect("a file");
    for (arguments, expected) in [
        (&["new", "taken", "--lang", "rust"][..], "taken exists"),
        (
            &["new", "Not/good", "--lang", "rust"],
            "cannot be a plugin's name",
        ),
        (
            &["new", "a", "--lang", "cobol"],
            "possible values: rust, python, javascript",
        ),
        (
            &["build", "taken"],
            "no Cargo.toml, pyproject.toml or package.json",
        ),
        (&["build", "missing"], "missing is no plugin's project"),
        (&["build", "worldless"], "tool.model-host.world"),
        (&["check", "missing.wasm"], "cannot read it"),
        (&["check", "taken"], "a component's file ends in .wasm"),
        (&["check", "nothing"], "unknown plugin"),
        (
            &["check", "gpt2", "--only", "everything"],
            "no check is called",
        ),
        (&["check", "gpt2", "--set", "nothing"], "expected KEY=VALUE"),
        (
            &["check", "gpt2", "--set", "nothing=1"],
            "unknown field `nothing`",
        ),
        (&["run", "gpt2", "--prompt", ""], "the prompt is empty"),
        (
            &["run", "gpt2", "--prompt", "a", "--chat"],
            "it cannot chat",
        ),
        (
            &[
                "run",
                "gpt2",
                "--prompt",
                "a",
                "--api-key-env",
                "NO_SUCH_KEY",
            ],
            "NO_SUCH_KEY",
        ),
    ] {
        let said = bad(&workshop.plugin(arguments));
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    assert!(
        !workshop.path("a").exists(),
        "a refused project leaves no folder"
    );
}
