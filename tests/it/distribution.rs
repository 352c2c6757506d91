//! Where components come from: files and registries, always by what they must be.

use serde_json::{Value, json};

use crate::component::{ask, misbehave};
use crate::harness::{Act, Client, Host, Registry, Upstream, component, eventually};
use crate::models::shown;

/// The digest of no component.
const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn bytes() -> Vec<u8> {
    std::fs::read(component("misbehave")).expect("a component")
}

/// The configuration of a model whose component is this; `more` are more settings.
fn model(plugin: &str, upstream: &Upstream, more: &str) -> String {
    misbehave(upstream.url(), more).replace(&component("misbehave"), plugin)
}

async fn start(config: String) -> (Host, Client) {
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer)
}

async fn answers(customer: &Client) {
    let asked = customer.post("/generate", ask("hello")).await.expect(200);
    assert_eq!(asked["response"], "hello");
}

/// The model with number 2 is unavailable, for a reason with these words in it.
async fn until_reason_says(host: &Host, words: &[&str]) {
    eventually("the model is unavailable", async || {
        let reason = shown(host, 2).await["reason"].to_string();
        words.iter().all(|word| reason.contains(word))
    })
    .await;
}

#[tokio::test]
async fn a_component_must_have_the_digest_that_is_configured() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let plugin = component("misbehave");
    let (host, customer) = start(model(&plugin, &upstream, "")).await;
    let digest = shown(&host, 2).await["digest"]
        .as_str()
        .expect("a digest")
        .to_owned();

    let pinned = |digest: &str| model(&plugin, &upstream, &format!("sha256 = \"{digest}\""));
    host.write_config(&pinned(&digest));
    let report = host
        .admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    assert_eq!(report["failed"], json!([]));
    answers(&customer).await;

    // the one before runs on
    host.write_config(&pinned(OTHER));
    eventually("the problem is told", async || {
        let problem = shown(&host, 2).await["problem"].to_string();
        problem.contains(&digest) && problem.contains(OTHER)
    })
    .await;
    answers(&customer).await;

    // and where there is none before, there is none
    let host = host.restart().await;
    let host = host.ready().await;
    until_reason_says(&host, &[&digest, OTHER]).await;
    assert!(!host.log().contains("component compiled"), "{}", host.log());
}

#[tokio::test]
async fn a_component_comes_from_a_registry_and_is_kept() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let registry = Registry::start().await;
    let reference = registry
        .push("models/misbehave", &bytes(), "application/wasm")
        .await;
    let (host, customer) = start(model(&reference, &upstream, "")).await;
    answers(&customer).await;
    let log = host.log();
    assert!(log.contains("\"is_cached\":false"), "{log}");

    // a restart needs the registry no more
    registry.stop();
    let host = host.restart().await.ready().await;
    let customer = host.customer().await;
    answers(&customer).await;
    let usage = customer.get("/usage/requests").await.expect(200);
    let local = Host::builder()
        .config(misbehave(upstream.url(), ""))
        .start()
        .await
        .ready()
        .await;
    // the digest on record is the component's own, wherever it came from
    let digest = shown(&local, 2).await["digest"].clone();
    assert_eq!(usage["requests"][0]["plugin_digest"], digest);

    // what lies in the folder is checked again
    let kept = host.dir().join("data/cache/components");
    let wasm = kept.join(format!("sha256-{}", digest.as_str().expect("text")));
    std::fs::write(wasm, b"something else").expect("a file");
    let host = host.restart().await.ready().await;
    until_reason_says(&host, &["oci://"]).await;
}

#[tokio::test]
async fn what_a_registry_has_tampered_with_is_refused() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let registry = Registry::start().await;
    let reference = registry
        .push("models/misbehave", &bytes(), "application/wasm")
        .await;
    registry.tamper(&bytes());
    let (host, _) = start(model(&reference, &upstream, "")).await;
    until_reason_says(&host, &["digest"]).await;
    assert!(!host.log().contains("component compiled"), "{}", host.log());

    // a manifest that is not the one that was pinned
    let unknown = format!("{}{OTHER}", reference.split_at(reference.len() - 64).0);
    host.write_config(&model(&unknown, &upstream, ""));
    let report = host
        .admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    assert!(
        report["failed"][0]["reason"].to_string().contains(OTHER),
        "{report}"
    );
}

#[tokio::test]
async fn only_a_component_is_taken_from_a_registry() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let registry = Registry::start().await;
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let image = registry.push("images/some", &bytes(), layer).await;
    let (host, _) = start(model(&image, &upstream, "")).await;
    until_reason_says(&host, &["one layer of type application/wasm"]).await;

    let gone = registry
        .push("models/gone", &bytes(), "application/wasm")
        .await;
    registry.stop();
    host.write_config(&model(&gone, &upstream, ""));
    host.admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    until_reason_says(&host, &["models/gone"]).await;
}

#[tokio::test]
async fn a_registry_gets_the_user_and_password_that_are_configured() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let registry = Registry::start_with_password("user", "pass-word").await;
    let reference = registry
        .push("models/misbehave", &bytes(), "application/wasm")
        .await;
    let auth = |text: &str| {
        model(
            &reference,
            &upstream,
            &format!("registry_auth = \"{text}\""),
        )
    };
    let (host, customer) = start(auth("user:wrong-word")).await;
    until_reason_says(&host, &["models/misbehave"]).await;
    let shown = shown(&host, 2).await.to_string();
    assert!(!shown.contains("wrong-word"), "{shown}");

    host.write_config(&auth("user:pass-word"));
    host.admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    answers(&customer).await;
    assert!(!host.log().contains("pass-word") && !host.log().contains("wrong-word"));
}

#[tokio::test]
async fn references_that_make_no_sense_are_refused() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let host = Host::start().await.ready().await;
    let file = component("misbehave");
    let pinned = format!("oci://a.example/b@sha256:{OTHER}");
    for (plugin, more, at, why) in [
        (
            "oci://a.example/b:latest",
            "",
            "plugin",
            "pinned by a digest",
        ),
        (
            "oci://a.example/b@sha256:123",
            "",
            "plugin",
            "64 lower-case hex digits",
        ),
        ("oci://b", "", "plugin", "pinned by a digest"),
        (
            file.as_str(),
            "sha256 = \"123\"",
            "sha256",
            "64 lower-case hex digits",
        ),
        (
            file.as_str(),
            "registry_auth = \"a:b\"",
            "registry_auth",
            "is in none",
        ),
        (
            pinned.as_str(),
            "registry_auth = \"ab\"",
            "registry_auth",
            "user:password",
        ),
    ] {
        host.write_config(&model(plugin, &upstream, more));
        let reply = host.admin().post("/admin/reload", Value::Null).await;
        let message = reply.body["error"]["message"].to_string();
        assert_eq!(
            reply.expect_error(409),
            "invalid_configuration",
            "{plugin} {more}"
        );
        let names_both = message.contains(&format!("models[0].{at}: ")) && message.contains(why);
        assert!(names_both, "{plugin} {more}: {message}");
    }
}
