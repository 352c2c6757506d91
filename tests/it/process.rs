//! The process: how it starts, what it says and what it leaves behind.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{ADMIN_KEY, GPT2, Host, eventually};

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
