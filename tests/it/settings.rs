//! What a configuration says of a model and nobody would follow is refused, not passed over.

use serde_json::{Value, json};

use crate::harness::{Host, component, eventually};
use crate::models::shown;

/// What is said of a configuration that cannot be used.
async fn refused(host: &Host, config: &str) -> String {
    host.write_config(config);
    let reply = host.admin().post("/admin/reload", Value::Null).await;
    let message = reply.body["error"]["message"].to_string();
    assert_eq!(reply.expect_error(409), "invalid_configuration", "{config}");
    message
}

#[tokio::test]
async fn a_variable_without_an_end_is_refused_by_its_field() {
    let host = Host::start().await.ready().await;
    let model = |more: &str| {
        let plugin = component("openai");
        format!("[[models]]\nid = 1\nname = \"a\"\nplugin = \"{plugin}\"\n{more}\n")
    };
    for (config, at) in [
        (model("api_url = \"${URL\""), "models[0].api_url: "),
        (
            model("settings = { a = [\"secret\", \"${A:-secret${B}}\"] }"),
            "models[0].settings.a[1]: ",
        ),
        ("[webhook]\nurl = \"${URL\"".to_owned(), "webhook.url: "),
    ] {
        let message = refused(&host, &config).await;
        assert!(message.contains(at), "{at} in {message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn what_leads_to_an_upstream_is_refused_where_there_is_none() {
    let host = Host::start().await.ready().await;
    let model = |plugin: &str, more: &str| {
        format!("[[models]]\nid = 1\nname = \"a\"\nplugin = \"{plugin}\"\n{more}\n")
    };
    let adapter = component("openai");
    for (config, at) in [
        (model(&adapter, "api_key = \"secret\""), "api_key"),
        (
            model(&adapter, "grants = [\"https://a.example\"]"),
            "grants",
        ),
        (model("gpt2", "api_url = \"https://a.example\""), "api_url"),
        (model("gpt2", "api_key = \"secret\""), "api_key"),
        (model("gpt2", "grants = [\"https://a.example\"]"), "grants"),
    ] {
        let message = refused(&host, &config).await;
        assert!(message.contains(&format!("models[0].{at}: ")), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn a_setting_that_there_is_not_is_refused_with_those_that_there_are() {
    let (mut config, mut expected) = (String::new(), Vec::new());
    for (id, plugin, more, known) in [
        (
            1,
            "gpt2".to_owned(),
            "model_path = \"embedded\"",
            "kv_cache_mib",
        ),
        (2, component("openai"), "", "max_tokens_field"),
        (3, component("anthropic"), "", "extra_body"),
        (4, component("lawgent-thinking"), "", "extra_body"),
    ] {
        let upstream = match id {
            1 => "",
            _ => "api_url = \"http://127.0.0.1:9/v1\"\nmodel_name = \"m\"",
        };
        config += &format!(
            "[[models]]\nid = {id}\nname = \"model-{id}\"\nplugin = \"{plugin}\"\n{more}\n{upstream}\n\
             settings = {{ retrys = 2 }}\n"
        );
        expected.push((id, known));
    }
    let host = Host::builder().config(&config).start().await.ready().await;
    for (id, known) in expected {
        let model = shown(&host, id).await;
        let reason = model["reason"].as_str().unwrap_or_default();
        let names_both = reason.contains("setting retrys is unknown") && reason.contains(known);
        assert!(names_both, "{model}");
    }
    host.write_config(&config.replace("settings", "# settings"));
    for id in 1..=4 {
        eventually("the model is there", async || {
            shown(&host, id).await["status"] == json!("ready")
        })
        .await;
    }
}
