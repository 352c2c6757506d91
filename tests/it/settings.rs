//! What a configuration says of a model and nobody would follow is refused, not passed over.

use serde_json::Value;

use crate::harness::{Host, component};

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
