//! Models that take long to load hold up nothing but themselves.

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::harness::{Act, GPT2, Host, PATIENCE, Upstream, eventually, lawgent};
use crate::models::shown;

/// A registry that takes connections and says nothing.
pub struct Silent(TcpListener);

impl Silent {
    pub async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    /// A component in it.
    pub fn reference(&self) -> String {
        let address = self.0.local_addr().expect("an address");
        format!("oci://{address}/slow@sha256:{}", "0".repeat(64))
    }

    /// The next connection that is made to it.
    async fn asked(&self) -> TcpStream {
        let accepted = timeout(PATIENCE, self.0.accept()).await;
        accepted.expect("it is asked").expect("a connection").0
    }
}

/// Waits until the other end has left.
async fn left(mut connection: TcpStream) {
    let mut read = Vec::new();
    let left = timeout(PATIENCE, connection.read_to_end(&mut read)).await;
    left.expect("it leaves").ok();
}

#[tokio::test]
async fn a_model_that_is_slow_to_load_holds_up_nothing_else() {
    let silent = Silent::start().await;
    let slow = format!(
        "[[models]]\nid = 3\nname = \"slow\"\nplugin = \"{}\"\n",
        silent.reference()
    );
    let priced = |price: f64| {
        format!("{GPT2}price_per_million = {{ prompt = {price:?}, completion = 1.0 }}\n{slow}")
    };
    let host = Host::start().await.ready().await;
    host.write_config(&priced(1.0));
    let connection = silent.asked().await;
    let admin = host.admin();
    let reload = tokio::spawn({
        let admin = admin.clone();
        async move { admin.post("/admin/reload", Value::Null).await }
    });
    host.anyone().get("/ready").await.expect(200);
    host.write_config(&priced(2.0));
    eventually("the price is live", async || {
        shown(&host, 1).await["price_per_million"]["prompt"] == 2.0
    })
    .await;
    assert_eq!(shown(&host, 3).await["status"], "loading");
    assert!(silent.0.accept().now_or_never().is_none(), "asked again");
    let added = async || {
        let acts = admin.get("/admin/audit").await.expect(200);
        let acts = acts["acts"].as_array().expect("a list").iter();
        acts.filter(|act| act["after"]["added"] == json!(["slow"]))
            .count()
    };
    eventually("it is on record", async || added().await == 1).await;

    let report = reload.await.expect("no panic").expect(200);
    assert_eq!(
        (&report["loading"], &report["failed"]),
        (&json!(["slow"]), &json!([]))
    );
    host.write_config(GPT2);
    eventually("it is gone", async || shown(&host, 3).await.is_null()).await;
    left(connection).await;
}

#[tokio::test]
async fn until_a_model_is_loaded_the_one_before_it_answers_and_may_stay() {
    let (silent, upstream) = (
        Silent::start().await,
        Upstream::start(Act::Answer("yes")).await,
    );
    let before = lawgent(upstream.url());
    let host = Host::builder().config(&before).start().await.ready().await;
    let plugin = crate::harness::component("lawgent-thinking");
    host.write_config(&before.replace(&plugin, &silent.reference()));
    let connection = silent.asked().await;
    let ask = json!({ "text": "Once", "model_id": 2 });
    let customer = host.customer().await;
    let answer = customer.post("/generate", ask.clone()).await.expect(200);
    assert_eq!(answer["response"], "yes");
    let priced = format!("{before}price_per_million = {{ prompt = 2.0, completion = 2.0 }}\n");
    host.write_config(&priced);
    left(connection).await;
    eventually("the price is live", async || {
        shown(&host, 2).await["price_per_million"]["prompt"] == 2.0
    })
    .await;
    let model = shown(&host, 2).await;
    assert_eq!(
        (&model["status"], &model["problem"]),
        (&json!("ready"), &Value::Null)
    );
    customer.post("/generate", ask).await.expect(200);
}

#[tokio::test]
async fn a_name_is_one_models_while_another_that_had_it_is_loaded() {
    let (silent, upstream) = (
        Silent::start().await,
        Upstream::start(Act::Answer("the old one")).await,
    );
    let named =
        |config: String, name: &str| config.replace("\"lawgent-thinking\"", &format!("\"{name}\""));
    let before = named(lawgent(upstream.url()), "fast");
    let host = Host::builder().config(&before).start().await.ready().await;
    let plugin = crate::harness::component("lawgent-thinking");
    let slow = named(lawgent(upstream.url()), "slow").replace(&plugin, &silent.reference());
    let fast = GPT2.replace("\"gpt2\"\nplugin", "\"fast\"\nplugin");
    host.write_config(&format!("{slow}{fast}"));
    let _connection = silent.asked().await;
    eventually("the new one is ready", async || {
        shown(&host, 1).await["status"] == "ready"
    })
    .await;
    let customer = host.customer().await;
    let models = customer.get("/v1/models").await.expect(200);
    let models = models["data"].as_array().expect("a list").iter();
    let names: Vec<_> = models.map(|model| &model["id"]).collect();
    assert_eq!(names, ["fast", "slow"]);
    let ask = |name: &str| json!({ "model": name, "prompt": "Once", "max_tokens": 2 });
    let answer = customer
        .post("/v1/completions", ask("fast"))
        .await
        .expect(200);
    assert_ne!(answer["choices"][0]["text"], "the old one");
    let answer = customer
        .post("/v1/completions", ask("slow"))
        .await
        .expect(200);
    assert_eq!(answer["choices"][0]["text"], "the old one");
}

/// It is not watched: whoever replaces it says so.
#[tokio::test]
async fn a_local_model_that_was_replaced_is_loaded_by_the_next_reload() {
    let fixtures = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../plugins/transformer/tests/fixtures"
    );
    let read = |file: &str| std::fs::read(format!("{fixtures}/{file}")).expect("a fixture");
    let config = GPT2.replace("\"embedded\"", "\"./model.gguf\"");
    let host = Host::builder()
        .config(config)
        .file("model.gguf", read("plain/plain.gguf"))
        .start()
        .await
        .ready()
        .await;
    let changed = async || {
        let report = host.admin().post("/admin/reload", Value::Null).await;
        report.expect(200)["changed"].clone()
    };
    // which has no template for it
    let ask = json!({ "model": "gpt2", "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 2 });
    let customer = host.customer().await;
    let refused = customer.post("/v1/chat/completions", ask.clone()).await;
    assert_eq!(refused.expect_error(501), "unsupported");
    assert_eq!(changed().await, json!([]));
    let new = host.dir().join("new.gguf");
    std::fs::write(&new, read("llama/llama.gguf")).expect("a file");
    std::fs::rename(new, host.dir().join("model.gguf")).expect("a file");
    assert_eq!(changed().await, json!(["gpt2"]));
    customer.post("/v1/chat/completions", ask).await.expect(200);
}

#[tokio::test]
async fn a_reload_loads_no_model_that_waits_for_its_first_request() {
    let lazy = format!("{GPT2}preload = false\n");
    let host = Host::builder().config(&lazy).start().await.ready().await;
    host.write_config(&format!("{lazy}[models.limits]\nqueue = 7\n"));
    let report = host.admin().post("/admin/reload", Value::Null).await;
    report.expect(200);
    assert_eq!(shown(&host, 1).await["status"], "on_demand");
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    let customer = host.customer().await;
    customer.post("/generate", ask).await.expect(200);
}

/// The file is a pipe, so that the test is the one to say when it is read.
#[tokio::test]
async fn an_edit_while_the_server_starts_is_not_missed() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let [pipe, data] = ["pipe", "data"].map(|name| folder.path().join(name));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let write = |name: &str| {
        let config = GPT2.replace("\"gpt2\"\nplugin", &format!("\"{name}\"\nplugin"));
        let pipe = pipe.clone();
        // until somebody reads it
        std::thread::spawn(move || std::fs::write(pipe, config).expect("a pipe"));
    };
    let editor = async {
        write("first");
        eventually("it was read", async || data.exists()).await;
        write("second");
    };
    let host = Host::builder()
        .argument(format!("--config={}", pipe.display()))
        .argument(format!("--data-dir={}", data.display()))
        .start();
    let (host, ()) = tokio::join!(host, editor);
    // for the reload itself
    write("second");
    eventually("the edit is live", async || {
        shown(&host, 1).await["name"] == "second"
    })
    .await;
}
