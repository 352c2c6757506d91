//! The process: how it starts, which signals it obeys, what it leaves behind.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::unix::pipe;

use crate::harness::{ADMIN_KEY, Act, GPT2, Host, Upstream, eventually, lawgent};

fn ask() -> Value {
    json!({ "text": "Once", "model_id": 2 })
}

/// A server with one request in flight, and its answer to come.
async fn in_flight(
    server: &str,
) -> (
    Host,
    Upstream,
    tokio::task::JoinHandle<crate::harness::Reply>,
) {
    let upstream = Upstream::start(Act::Hold(" at last")).await;
    let host = Host::builder()
        .config(format!("{server}{}", lawgent(upstream.url())))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    let asking = tokio::spawn(async move { customer.post("/generate", ask()).await });
    eventually("the upstream is asked", async || upstream.open() == 1).await;
    (host, upstream, asking)
}

/// The rows on record after a restart.
async fn rows(host: Host) -> Value {
    let host = host.restart().await;
    host.admin().get("/usage/requests").await.expect(200)["requests"].clone()
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_takes_nothing_new() {
    for signal in ["TERM", "INT"] {
        let (mut host, upstream, asking) = in_flight("").await;
        host.signal(signal);
        eventually("the log says so", async || {
            host.log().contains("stopping: requests in flight")
        })
        .await;
        let address = host.url().trim_start_matches("http://").to_owned();
        eventually("no connection is taken", async || {
            tokio::net::TcpStream::connect(&address).await.is_err()
        })
        .await;
        assert!(!asking.is_finished());
        upstream.release(1);
        assert_eq!(
            asking.await.expect("no panic").expect(200)["response"],
            " at last"
        );
        assert!(host.wait_exit().await.success());
        let rows = rows(host).await;
        assert_eq!(
            (rows.as_array().map(Vec::len), &rows[0]["status"]),
            (Some(1), &json!("ok"))
        );
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let (mut host, _upstream, asking) = in_flight("").await;
    host.signal("TERM");
    eventually("the log says so", async || {
        host.log().contains("stopping: requests in flight")
    })
    .await;
    host.signal("TERM");
    assert_eq!(host.wait_exit().await.code(), Some(130));
    assert!(asking.await.is_err(), "the connection was cut");
    host.restart().await.ready().await;
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_off_and_on_record() {
    let (mut host, _upstream, asking) = in_flight("[server]\ndrain_seconds = 1\n").await;
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    asking.await.ok();
    let rows = rows(host).await;
    assert_eq!(
        (&rows[0]["status"], &rows[0]["cost"]),
        (&json!("failed"), &json!(0.0))
    );
}

#[tokio::test]
async fn so_is_what_goes_on_for_a_client_that_may_come_back() {
    let upstream = Upstream::start(Act::Stall).await;
    let config = format!("[server]\ndrain_seconds = 1\n{}", lawgent(upstream.url()));
    let mut host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let asking = customer
        .request(Method::POST, "/generate")
        .header("idempotency-key", "once")
        .json(&json!({ "text": "Is it?", "model_id": 2 }));
    let asking = tokio::spawn(asking.send());
    eventually("the upstream has it", async || upstream.open() == 1).await;
    asking.abort();
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    let rows = rows(host).await;
    assert_eq!(rows[0]["status"], "failed", "{rows}");
}

#[tokio::test]
async fn idle_connections_do_not_keep_the_server() {
    let mut host = Host::builder()
        .config("[server]\ndrain_seconds = 600\n")
        .start()
        .await;
    host.anyone().get("/health").await.expect(200);
    let address = host.url().trim_start_matches("http://").to_owned();
    let _idle = tokio::net::TcpStream::connect(&address)
        .await
        .expect("a connection");
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    assert!(host.log().contains("stopped"));
}

#[tokio::test]
async fn a_model_that_is_being_read_does_not_keep_the_server() {
    let mut host = Host::builder().start().await.ready().await;
    // it is read until somebody has written it
    let endless = host.dir().join("endless.wasm");
    let made = Command::new("mkfifo").arg(&endless).status();
    assert!(made.expect("mkfifo runs").success());
    host.write_config(&format!(
        "{GPT2}[[models]]\nid = 2\nname = \"endless\"\nplugin = \"endless.wasm\"\n"
    ));
    host.signal("HUP");
    let (writer, open) = (Mutex::new(None), pipe::OpenOptions::new());
    eventually("it is being read", async || {
        let opened = open.open_sender(&endless).ok();
        let is_open = opened.is_some();
        *writer.lock().expect("no panic") = opened;
        is_open
    })
    .await;
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
    assert!(host.log().contains("stopped"));
}

#[tokio::test]
async fn options_come_from_the_command_line_and_from_the_environment() {
    let elsewhere = tempfile::TempDir::new().expect("a folder");
    let (data, config) = (
        elsewhere.path().join("there"),
        elsewhere.path().join("other.toml"),
    );
    std::fs::write(
        &config,
        GPT2.replace("\"gpt2\"\nplugin", "\"elsewhere\"\nplugin"),
    )
    .expect("a file");
    let path = |path: &std::path::Path| path.display().to_string();
    let host = Host::builder()
        .config("this is not read")
        .argument(format!("--data-dir={}", path(&data)))
        .env("MODEL_HOST_CONFIG", path(&config))
        .start()
        .await;
    let models = host.admin().get("/models").await.expect(200);
    assert_eq!(models["models"][0]["name"], "elsewhere");
    assert!(data.join("secret").is_file());
    assert!(!host.dir().join("data").exists());
}

#[tokio::test]
async fn variables_come_from_the_env_file_too() {
    let env = format!("MODEL_HOST_ADMIN_KEY={ADMIN_KEY}\nNAME=\"from a file\"\n");
    let config = GPT2.replace("\"gpt2\"\nplugin", "\"${NAME}\"\nplugin");
    let host = Host::builder()
        .without_admin_key()
        .config(config)
        .file(".env", env)
        .start()
        .await;
    assert_eq!(host.out(), "", "no key is made");
    let models = host.admin().get("/models").await.expect(200);
    assert_eq!(models["models"][0]["name"], "from a file");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    for (setup, word) in [
        (Host::builder().config("[[models]\n"), "line 1"),
        (Host::builder().config("colour = \"red\"\n"), "colour"),
        (
            Host::builder().config("[[models]]\nid = 0\nname = \"\"\nplugin = \"gpt2\"\n"),
            "models[0].name",
        ),
        (
            Host::builder()
                .without_admin_key()
                .env("MODEL_HOST_ADMIN_KEY", "short"),
            "16 characters",
        ),
        (
            Host::builder().env("MODEL_HOST_ADMIN_KEY", "Schlüssel der Verwaltung"),
            "printable ASCII",
        ),
        (
            Host::builder().env("MODEL_HOST_ADMIN_KEY", "mhk_of-the-operator"),
            "must not begin with mhk_",
        ),
        (
            Host::builder().config("[requests]\nbody_timeout_ms = 0\n"),
            "requests.body_timeout_ms: must be at least 1",
        ),
        (
            Host::builder().config("[requests]\nper_minute = 1000001\n"),
            "requests.per_minute: must be from 1 to 1000000",
        ),
        (
            Host::builder().argument("--config=missing.toml"),
            "missing.toml",
        ),
        (Host::builder().argument("--nonsense"), "--nonsense"),
        (
            Host::builder().argument("--data-dir=/proc/no/such"),
            "/proc/no/such",
        ),
        (Host::builder().file("data", ""), "data"),
        (
            Host::builder().env("MODEL_HOST_LOG_FORMAT", "xml"),
            "MODEL_HOST_LOG_FORMAT",
        ),
        (Host::builder().file(".env", "SECRET='sk-half\n"), ".env"),
    ] {
        let (status, said) = setup.refused();
        assert!(!status.success(), "{said}");
        assert!(said.contains(word), "{word} in {said}");
        assert!(
            !said.contains("sk-half") && !said.contains("panicked"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let config = format!("[server]\nlisten = \"{address}\"\n");
    let (status, said) = Host::builder()
        .config(config)
        .listening_as_configured()
        .refused();
    assert!(!status.success() && said.contains(&address), "{said}");
}

#[tokio::test]
async fn every_problem_of_a_configuration_is_said_at_once_and_nothing_is_made() {
    let again = GPT2.replace("id = 1", "id = 1\napi_url = \"ftp://x\"");
    let data = tempfile::TempDir::new().expect("a folder");
    let data = data.path().join("data");
    let setup = Host::builder()
        .config(format!("{GPT2}{again}"))
        .argument(format!("--data-dir={}", data.display()));
    let (_, said) = setup.refused();
    for problem in ["models[1].id", "models[1].name", "models[1].api_url"] {
        assert!(said.contains(problem), "{problem} in {said}");
    }
    assert!(!data.exists());
}

#[tokio::test]
async fn a_preset_admin_key_may_have_space_around_it() {
    let preset = format!(" {ADMIN_KEY} \n");
    let host = Host::builder()
        .env("MODEL_HOST_ADMIN_KEY", preset)
        .start()
        .await;
    host.admin().get("/customers").await.expect(200);
}

#[tokio::test]
async fn a_command_for_a_database_makes_none() {
    let host = Host::builder().in_file().start().await;
    let elsewhere = host.dir().join("elsewhere");
    let folder = format!("--data-dir={}", elsewhere.display());
    for command in [
        &["admin", "reset-key"][..],
        &["db", "audit"],
        &["db", "copy", "--to=postgres://nobody@127.0.0.1:9/nothing"],
    ] {
        let (status, said) = host.try_run(&[command, &[folder.as_str()]].concat());
        assert!(
            !status.success() && said.contains("there is no database"),
            "{said}"
        );
        assert!(!elsewhere.exists(), "{command:?}");
    }
}

#[tokio::test]
async fn the_log_is_lines_of_json_that_name_their_request() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let body =
        json!({ "text": "a prompt that is nobody's business", "model_id": 1, "max_new_tokens": 1 });
    let id = customer
        .post("/generate", body)
        .await
        .header("x-request-id")
        .to_owned();
    eventually("the log has it", async || {
        host.log().contains("\"generated\"")
    })
    .await;
    let log = host.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let line = lines
        .iter()
        .find(|line| line["message"] == "generated")
        .expect("a line");
    assert_eq!(line["span"]["request_id"], id.as_str(), "{line}");
    assert_eq!(
        (&line["model"], &line["status"]),
        (&json!("gpt2"), &json!("ok"))
    );
    assert!(
        line["latency_ms"].is_number() && line["completion_tokens"] == 1,
        "{line}"
    );
    assert!(!log.contains("nobody's business"), "a prompt is not logged");
}

#[tokio::test]
async fn what_is_secret_on_the_disk_is_the_owners_alone() {
    let host = Host::start().await;
    let mode = |path: &str| {
        let metadata = std::fs::metadata(host.dir().join(path)).expect("a file");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("data/secret"), 0o600);
}

#[tokio::test]
async fn without_a_command_it_serves_and_it_knows_its_version() {
    let host = Host::start().await;
    assert!(host.run(&["--version"]).starts_with("model-host "));
    let help = host.run(&["serve", "--help"]);
    for option in [
        "--config",
        "--listen",
        "--data-dir",
        "MODEL_HOST_CONFIG",
        "MODEL_HOST_LISTEN",
        "MODEL_HOST_DATA_DIR",
    ] {
        assert!(help.contains(option), "{option} in {help}");
    }
    assert!(!help.contains(ADMIN_KEY), "{help}");
}

#[tokio::test]
async fn the_root_configuration_starts_where_there_is_no_hub() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../model-host.toml");
    let host = Host::builder()
        .argument(format!("--config={root}"))
        // nobody answers there
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .start()
        .await
        .ready()
        .await;
    let models = host.admin().get("/models").await.expect(200)["models"].clone();
    assert_eq!(
        (&models[0]["id"], &models[0]["name"], &models[0]["status"]),
        (&json!(1), &json!("gpt2"), &json!("ready"))
    );
    assert_eq!(models[0]["source"], "embedded");
    assert_eq!(
        (&models[1]["id"], &models[1]["name"]),
        (&json!(2), &json!("lawgent-thinking"))
    );
    assert!(
        models[1]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("LAWGENT_API_URL")),
        "{models}"
    );
    let body = json!({ "text": "Once upon a time", "model_id": 1, "max_length": 40 });
    host.customer()
        .await
        .post("/generate", body)
        .await
        .expect(200);
}
