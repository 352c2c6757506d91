//! A changed configuration goes live: by the file alone, by SIGHUP, by a POST.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Act, GPT2, Host, Upstream, eventually, lawgent};
use crate::models::shown;

const OTHER: &str =
    "[[models]]\nid = 3\nname = \"other\"\nplugin = \"gpt2\"\nmodel_path = \"embedded\"\n";
const BROKEN: &str =
    "[[models]]\nid = 3\nname = \"other\"\nplugin = \"gpt2\"\nmodel_path = \"./gone\"\n";

fn ask(model_id: i64) -> Value {
    json!({ "text": "Once", "model_id": model_id, "max_new_tokens": 2, "temperature": 0 })
}

async fn reload(host: &Host) -> Value {
    host.admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200)
}

#[tokio::test]
async fn a_written_file_goes_live_within_a_second() {
    let host = Host::start().await.ready().await;
    let mut quickest = Duration::MAX;
    // the best of several: a busy machine may be slow once
    for price in 1..=5 {
        let price = f64::from(price);
        host.write_config(&format!(
            "{GPT2}price_per_million = {{ prompt = {price:?}, completion = 1.0 }}\n"
        ));
        let written = Instant::now();
        eventually("the price is live", async || {
            shown(&host, 1).await["price_per_million"]["prompt"] == price
        })
        .await;
        quickest = quickest.min(written.elapsed());
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
}

#[tokio::test]
async fn a_model_is_added_changed_and_removed() {
    let host = Host::start().await.ready().await;
    host.write_config(&format!("{GPT2}{OTHER}"));
    eventually("the model is there", async || {
        shown(&host, 3).await["status"] == "ready"
    })
    .await;
    let customer = host.customer().await;
    let first = customer.post("/generate", ask(3)).await.expect(200);
    assert_eq!(
        first["cost"].as_f64(),
        first["tokens_used"]
            .as_f64()
            .map(|tokens| tokens / 100_000.0)
    );

    host.write_config(&format!(
        "{GPT2}{OTHER}price_per_million = {{ prompt = 0, completion = 0 }}\n"
    ));
    eventually("the price is live", async || {
        shown(&host, 3).await["price_per_million"]["prompt"] == 0.0
    })
    .await;
    let second = customer.post("/generate", ask(3)).await.expect(200);
    assert_eq!(
        (&second["response"], &second["cost"]),
        (&first["response"], &json!(0.0))
    );

    host.write_config(&format!(
        "{GPT2}{}",
        OTHER.replace("\"other\"", "\"renamed\"")
    ));
    eventually("the name is live", async || {
        shown(&host, 3).await["name"] == "renamed"
    })
    .await;

    host.write_config(GPT2);
    eventually("the model is gone", async || {
        shown(&host, 3).await.is_null()
    })
    .await;
    assert_eq!(
        customer.post("/generate", ask(3)).await.expect_error(404),
        "model_not_found"
    );
    customer.post("/generate", ask(1)).await.expect(200);
}

#[tokio::test]
async fn a_post_reports_what_it_did() {
    let host = Host::start().await.ready().await;
    // by another name, in a folder that is not watched: the POST is the one to find the change
    let folder = host.dir().join("other");
    std::fs::create_dir(&folder).expect("a folder");
    let [file, other] = [host.dir(), &folder].map(|folder| folder.join("model-host.toml"));
    std::fs::hard_link(&file, &other).expect("a link");
    let report = |added: &[&str], changed: &[&str], removed: &[&str]| json!({ "added": added, "changed": changed, "removed": removed, "failed": [], "loading": [], "needs_restart": [] });
    let write = |config: String| std::fs::write(&other, config).expect("a file");
    assert_eq!(reload(&host).await, report(&[], &[], &[]));
    write(format!("{GPT2}{OTHER}"));
    assert_eq!(reload(&host).await, report(&["other"], &[], &[]));
    assert_eq!(shown(&host, 3).await["status"], "ready");
    write(format!(
        "{GPT2}preload = false\n{OTHER}price_per_million = {{ prompt = 1, completion = 1 }}\n"
    ));
    assert_eq!(reload(&host).await, report(&[], &["gpt2", "other"], &[]));
    write(format!("{GPT2}{OTHER}[models.limits]\nqueue = 1\n"));
    assert_eq!(reload(&host).await["changed"], json!(["gpt2", "other"]));
    write(String::new());
    assert_eq!(reload(&host).await, report(&[], &[], &["gpt2", "other"]));
    assert_eq!(
        host.admin().get("/models").await.expect(200)["models"],
        json!([])
    );
    write(BROKEN.to_owned());
    let broken = reload(&host).await;
    assert_eq!(
        (&broken["added"], &broken["failed"][0]["model"]),
        (&json!(["other"]), &json!("other"))
    );
    assert!(
        broken["failed"][0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("gone")),
        "{broken}"
    );
}

#[tokio::test]
async fn a_bad_file_leaves_everything_running_and_says_why() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    for (bad, word) in [
        ("[[models]\n", "line 1"),
        ("[[models]]\nid = 1\nname = \"gpt2\"\n", "plugin"),
        (
            "[[models]]\nid = 1\nname = \"gpt2\"\nplugin = \"gpt2\"\ncolour = \"red\"\n",
            "colour",
        ),
        (
            "[[models]]\nid = 0\nname = \"\"\nplugin = \"gpt2\"\n",
            "models[0].id",
        ),
        (
            "[[models]]\nid = 1\nname = \"a\"\nplugin = \"gpt2\"\nprice_per_million = { prompt = -1, completion = 1 }\n",
            "-1",
        ),
        (
            "[[models]]\nid = 1\nname = \"a\"\nplugin = \"gpt2\"\n[[models]]\nid = 1\nname = \"a\"\nplugin = \"gpt2\"\n",
            "models[1].id",
        ),
        (
            "[[models]]\nid = 1\nname = \"a\"\nplugin = \"x.wasm\"\napi_url = \"ftp://a\"\n",
            "api_url",
        ),
        ("[server]\nlisten = \"nowhere\"\n", "listen"),
        (
            "[[models]]\nid = 1\nname = \"a\"\nplugin = \"x.wasm\"\napi_key = 777000777000\n",
            "models[0].api_key",
        ),
        ("models = 1\n", "models"),
    ] {
        host.write_config(bad);
        let reply = host.admin().post("/admin/reload", Value::Null).await;
        let message = reply.body["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(reply.expect_error(409), "invalid_configuration", "{bad}");
        assert!(message.contains(word), "{word} in {message}");
        let models = host.admin().get("/models").await.expect(200);
        assert_eq!(models["models"][0]["status"], "ready", "{bad}");
        let told = models["configuration_error"].as_str().unwrap_or_default();
        assert!(told.contains(word), "{word} in {models}");
        assert!(host.log().contains("configuration refused"));
        customer.post("/generate", ask(1)).await.expect(200);
    }
    assert!(!host.log().contains("777000777000"), "it may be a secret");
    assert!(
        customer.get("/models").await.expect(200)["configuration_error"].is_null(),
        "it is the operator's"
    );
    std::fs::remove_file(host.dir().join("model-host.toml")).expect("a file");
    host.admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect_error(409);
    customer.post("/generate", ask(1)).await.expect(200);
    host.write_config(GPT2);
    eventually("the error is gone", async || {
        host.admin().get("/models").await.expect(200)["configuration_error"].is_null()
    })
    .await;
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_again_runs_on_as_it_was() {
    let host = Host::builder()
        .config(format!("{GPT2}{OTHER}"))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    host.write_config(&format!("{GPT2}{BROKEN}"));
    let report = reload(&host).await;
    let model = shown(&host, 3).await;
    assert_eq!(model["status"], "ready", "{report}");
    assert!(
        model["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("gone")),
        "{model}"
    );
    let models = customer.get("/models").await.expect(200);
    assert!(!models.to_string().contains("gone"), "it is the operator's");
    assert!(host.log().contains("model is unavailable"));
    customer.post("/generate", ask(3)).await.expect(200);
    customer.post("/generate", ask(1)).await.expect(200);

    host.write_config(&format!("{GPT2}{OTHER}"));
    eventually("the problem is gone", async || {
        shown(&host, 3).await["problem"].is_null()
    })
    .await;
}

#[tokio::test]
async fn a_variable_that_comes_into_the_env_file_makes_its_model_available() {
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let config = lawgent("${LAWGENT_API_URL}");
    let host = Host::builder().config(config).start().await.ready().await;
    assert_eq!(shown(&host, 2).await["status"], "unavailable");
    std::fs::write(
        host.dir().join(".env"),
        format!("LAWGENT_API_URL={}\n", upstream.url()),
    )
    .expect("a file");
    eventually("the model is there", async || {
        shown(&host, 2).await["status"] == "ready"
    })
    .await;
    let answer = host
        .customer()
        .await
        .post("/generate", ask(2))
        .await
        .expect(200);
    assert_eq!(answer["response"], " yes");
}

#[tokio::test]
async fn the_env_file_is_read_again_as_a_whole_or_not_at_all() {
    let host = Host::builder()
        .config(GPT2.replace("\"gpt2\"\nplugin", "\"${NAME}\"\nplugin"))
        .file(".env", "\u{feff}BASE=fir\nNAME=\"${BASE}st\"\n")
        .start()
        .await
        .ready()
        .await;
    assert_eq!(shown(&host, 1).await["name"], "first");
    let write = |text: &str| std::fs::write(host.dir().join(".env"), text).expect("a file");
    write("NAME=other\nLATER='sk-half\n");
    let reply = host.admin().post("/admin/reload", Value::Null).await;
    let message = reply.body["error"]["message"].to_string();
    assert_eq!(reply.expect_error(409), "invalid_configuration");
    assert!(message.contains(".env: line 2: "), "{message}");
    assert_eq!(shown(&host, 1).await["name"], "first");
    let secret = "sk-half";
    assert!(!message.contains(secret) && !host.log().contains(secret));

    write("BASE=seco\nNAME=\"${BASE}nd\"\n");
    eventually("the name is live", async || {
        shown(&host, 1).await["name"] == "second"
    })
    .await;
}

#[tokio::test]
async fn a_request_ends_with_the_model_it_began_with() {
    let upstream = Upstream::start(Act::Hold(" at last")).await;
    let host = Host::builder()
        .config(lawgent(upstream.url()))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    let asking = tokio::spawn(async move { customer.post("/generate", ask(2)).await });
    eventually("the upstream is asked", async || upstream.open() == 1).await;
    host.write_config("");
    reload(&host).await;
    assert!(shown(&host, 2).await.is_null());
    upstream.release(1);
    assert_eq!(
        asking.await.expect("no panic").expect(200)["response"],
        " at last"
    );
}

#[tokio::test]
async fn no_request_is_lost_under_reloads() {
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let always = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder().config(&always).start().await.ready().await;
    let customer = host.customer().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..6)
        .map(|number| {
            let (customer, stop) = (customer.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answered = 0;
                while !stop.is_cancelled() {
                    customer
                        .post("/generate", ask(1 + number % 2))
                        .await
                        .expect(200);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    // another backend each time for both models, and a third that comes and goes
    for round in 1..=8_u32 {
        let limits =
            |model: &str| format!("{model}[models.limits]\nmax_new_tokens = {}\n", 100 + round);
        let third = if round % 2 == 0 { OTHER } else { "" };
        host.write_config(&format!(
            "{}{}{third}",
            limits(GPT2),
            limits(&lawgent(upstream.url()))
        ));
        if round % 3 == 0 {
            host.signal("HUP");
        }
        let report = reload(&host).await;
        assert_eq!(report["failed"], json!([]));
    }
    stop.cancel();
    let mut answered = 0;
    for client in clients {
        answered += client.await.expect("every answer was 200");
    }
    assert!(answered > 20, "{answered}");
    assert_eq!(
        customer.get("/usage").await.expect(200)["totals"]["requests"],
        answered
    );
}

#[tokio::test]
async fn sections_that_need_a_restart_are_named() {
    let secret = "hf_once";
    let host = Host::builder().file(".env", format!("HF_TOKEN={secret}\nOTEL_A=1\n"));
    let host = host.start().await.ready().await;
    std::fs::write(
        host.dir().join(".env"),
        "OTEL_A=1\nHF_ENDPOINT=http://127.0.0.1:9\n",
    )
    .unwrap();
    host.write_config(&format!(
        "[requests]\nper_minute = 7\n[server]\ndrain_seconds = 1\n[database]\nkeep_usage_days = 9\n{GPT2}"
    ));
    let report = reload(&host).await;
    assert_eq!(
        report["needs_restart"],
        json!(["server", "requests", "database", "HF_ENDPOINT", "HF_TOKEN"])
    );
    assert!(!host.log().contains(secret));
    assert_eq!(
        host.customer_with(json!({}))
            .await
            .get("/api/keys")
            .await
            .expect(200)["keys"][0]["rate_limit"],
        60
    );
    let host = host.restart().await;
    host.customer_with(json!({})).await;
    let keys = host.admin().get("/api/keys").await.expect(200);
    assert_eq!(keys["keys"][1]["rate_limit"], 7);
}
