//! The network belongs to the host: what a component may reach, with which headers,
//! how long and how much.

use std::collections::HashSet;

use axum::http::Version;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::component::{SECRET, ask, misbehave, with_misbehave};
use crate::harness::{Act, Client, Host, Upstream, eventually};
use crate::models::shown;

/// Scheme, host and port of an upstream.
fn origin(upstream: &Upstream) -> &str {
    upstream.url().trim_end_matches("/v1/completions")
}

fn port(upstream: &Upstream) -> &str {
    origin(upstream).rsplit(':').next().expect("a port")
}

/// A server with one model that misbehaves, and a customer of it.
async fn with_config(config: String) -> (Host, Client) {
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer)
}

/// The code of a request that must fail.
async fn refusal(customer: &Client, prompt: &str) -> String {
    let reply = customer.post("/generate", ask(prompt)).await;
    let status = reply.status.as_u16();
    assert!(status >= 500, "{prompt}: {status} {}", reply.body);
    reply.expect_error(status)
}

#[tokio::test]
async fn a_key_goes_into_the_header_that_the_configuration_names() {
    let more = "api_key_header = \"X-Api-Key\"";
    let (host, customer, upstream) = with_misbehave(Act::Answer("yes"), more).await;
    customer.post("/generate", ask("fetch")).await.expect(200);
    let seen = &upstream.seen()[0];
    assert_eq!(seen.headers["x-api-key"], SECRET);
    assert!(seen.headers.get("authorization").is_none(), "{seen:?}");

    // the plugin can set neither that header nor the usual one
    for name in ["x-api-key", "X-API-KEY", "authorization"] {
        let code = refusal(&customer, &format!("fetch\n{name}: mine")).await;
        assert_eq!(code, "invalid_upstream_request", "{name}");
    }
    assert_eq!(upstream.seen().len(), 1);

    // nor read it, whatever the upstream puts there
    upstream.act(Act::Say(200, vec![("x-api-key", "hush")], "hello"));
    let told = customer.post("/generate", ask("fetch")).await.expect(200)["response"].to_string();
    assert!(
        told.contains("hello") && !told.contains("x-api-key"),
        "{told}"
    );
    assert!(!host.log().contains(SECRET), "{}", host.log());
}

#[tokio::test]
async fn a_grant_opens_another_origin_without_the_key() {
    let (api, files, other) = (
        Upstream::start(Act::Answer("api")).await,
        Upstream::start(Act::Echo).await,
        Upstream::start(Act::Answer("other")).await,
    );
    let grants = format!("grants = [\"{}\"]", origin(&files));
    let (_host, customer) = with_config(misbehave(api.url(), &grants)).await;
    let fetch = |of: &Upstream| ask(&format!("fetch {}/a/file", origin(of)));
    customer.post("/generate", fetch(&files)).await.expect(200);
    customer.post("/generate", fetch(&api)).await.expect(200);
    let code = refusal(&customer, &format!("fetch {}", other.url())).await;
    assert_eq!(code, "not_granted");

    let seen = files.seen();
    assert!(seen[0].headers.get("authorization").is_none(), "{seen:?}");
    let key = format!("Bearer {SECRET}");
    assert_eq!(api.seen()[0].headers["authorization"], key);
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn another_port_scheme_or_host_is_not_granted() {
    let (api, other) = (
        Upstream::start(Act::Answer("api")).await,
        Upstream::start(Act::Answer("other")).await,
    );
    let (_host, customer) = with_config(misbehave(api.url(), "")).await;
    let (port, other_port) = (port(&api), port(&other));
    for url in [
        format!("http://127.0.0.1:{other_port}/"),
        "http://127.0.0.1/".to_owned(),
        format!("https://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://0:{port}/"),
        format!("http://127.0.0.2:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://[::ffff:7f00:1]:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
    ] {
        let code = refusal(&customer, &format!("fetch {url}")).await;
        assert_eq!(code, "not_granted", "{url}");
    }
    // what is no URL, or smuggles a user in, is not even taken
    for url in [
        format!("http://user@127.0.0.1:{port}/"),
        format!("http://api.example@127.0.0.1:{port}/"),
        format!("http://[fe80::1%25lo]:{port}/"),
        format!("http://[fe80::1%lo]:{port}/"),
        format!("gopher://127.0.0.1:{port}/"),
        "file:///etc/passwd".to_owned(),
    ] {
        refusal(&customer, &format!("fetch {url}")).await;
    }
    assert!(api.seen().is_empty() && other.seen().is_empty());
    // another spelling of the very address that is granted
    for host in ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"] {
        let url = format!("fetch http://{host}:{port}/");
        customer.post("/generate", ask(&url)).await.expect(200);
    }
    assert_eq!(api.seen().len(), 4);
}

#[tokio::test]
async fn the_connections_of_a_burst_serve_the_next() {
    const BURST: usize = 64;
    let upstream = Upstream::start(Act::Hold("yes")).await;
    let config = misbehave(upstream.url(), "");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer_with(json!({ "rate_limit": 1000 })).await;
    for _ in 0..2 {
        let mut asking = JoinSet::new();
        for _ in 0..BURST {
            let customer = customer.clone();
            asking.spawn(async move { customer.post("/generate", ask("fetch")).await });
        }
        eventually("all are asked", async || upstream.open() == BURST).await;
        upstream.release(BURST);
        while let Some(reply) = asking.join_next().await {
            reply.expect("a reply").expect(200);
        }
    }
    let seen = upstream.seen();
    let connections: HashSet<_> = seen.iter().map(|seen| seen.peer).collect();
    assert_eq!(seen.len(), 2 * BURST);
    // one may be free again only after its answer has reached the client
    assert!(connections.len() < BURST + BURST / 4, "{connections:?}");
}

#[tokio::test]
async fn an_api_with_tls_is_reached_where_its_certificate_is_trusted() {
    let api = Upstream::start_with_tls(Act::Answer("yes")).await;
    for is_trusted in [true, false] {
        let mut builder = Host::builder().config(misbehave(api.url(), ""));
        if is_trusted {
            builder = builder
                .file("trusted.pem", Upstream::CERTIFICATE)
                .env("SSL_CERT_FILE", "trusted.pem");
        }
        let host = builder.start().await.ready().await;
        let customer = host.customer().await;
        if is_trusted {
            customer.post("/generate", ask("fetch")).await.expect(200);
        } else {
            assert_eq!(refusal(&customer, "fetch").await, "upstream_unreachable");
            assert!(host.log().contains("certificate"), "{}", host.log());
        }
    }
    let seen = api.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    // though it offers another: a connection for each request that waits
    assert_eq!(seen[0].version, Version::HTTP_11);
    let key = format!("Bearer {SECRET}");
    assert_eq!(seen[0].headers["authorization"], key);
}

#[tokio::test]
async fn what_stands_for_a_key_where_none_is_needed_may_be_in_answers() {
    let upstream = Upstream::start(Act::Answer("I am ollama")).await;
    let config = misbehave(upstream.url(), "").replace(SECRET, "ollama");
    let (_host, customer) = with_config(config).await;
    let answer = customer.post("/generate", ask("fetch")).await.expect(200);
    assert!(answer.to_string().contains("I am ollama"), "{answer}");
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_needs_permission() {
    // names that lead to this machine: its own, as Debian sets it up
    let named = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = named.trim();
    let resolves = tokio::net::lookup_host((name, 0)).await;
    let Some(address) = resolves.ok().and_then(|mut found| found.next()) else {
        eprintln!("skipped: {name:?} does not resolve; host/src/models has the unit test");
        return;
    };
    let upstream = Upstream::start_at(address.ip(), Act::Answer("yes")).await;
    let url = format!("http://{name}:{}/", port(&upstream));
    let (_host, customer) = with_config(misbehave(&url, "")).await;
    assert_eq!(refusal(&customer, "fetch").await, "not_granted");
    assert!(upstream.seen().is_empty());

    let (_host, customer) = with_config(misbehave(&url, "allow_private_addresses = true")).await;
    customer.post("/generate", ask("fetch")).await.expect(200);
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let other = Upstream::start(Act::Answer("other")).await;
    let location: &str = other.url().to_owned().leak();
    let act = Act::Say(307, vec![("location", location)], "");
    let (_host, customer, _upstream) = with_misbehave(act, "").await;
    let told = customer.post("/generate", ask("fetch")).await.expect(200)["response"].to_string();
    assert!(told.contains("307"), "{told}");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn no_header_is_smuggled_in() {
    let (_host, customer, upstream) = with_misbehave(Act::Answer("yes"), "").await;
    for header in [
        r"x-fine: a\r\nauthorization: Bearer mine",
        r"x-fine: a\nauthorization: Bearer mine",
        r"x-fine\r\nauthorization: Bearer mine",
        "host: evil.example",
        "Host: evil.example",
        "proxy-authorization: Basic bWluZQ==",
        "transfer-encoding: chunked",
        "connection: upgrade",
        "upgrade: h2c",
        "cookie: a=b",
        "AUTHORIZATION: Bearer mine",
    ] {
        let code = refusal(&customer, &format!("fetch\n{header}")).await;
        assert_eq!(code, "invalid_upstream_request", "{header}");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    customer
        .post("/generate", ask("fetch\nx-fine: mine"))
        .await
        .expect(200);
    assert_eq!(upstream.seen()[0].headers["x-fine"], "mine");
}

#[tokio::test]
async fn a_request_waits_no_longer_than_its_deadline_whatever_it_asks() {
    let limits = "[models.limits]\ntimeout_ms = 300";
    let (_host, customer, upstream) = with_misbehave(Act::Stall, limits).await;
    // the plugin asks for an hour
    assert_eq!(refusal(&customer, "fetch").await, "timeout");
    eventually("the upstream request is given up", async || {
        upstream.open() == 0
    })
    .await;
}

#[tokio::test]
async fn bodies_and_headers_are_bounded_both_ways() {
    let limits =
        "[models.limits]\nrequest_bytes = 1048576\nresponse_bytes = 1048576\nheader_bytes = 4096";
    let (_host, customer, upstream) = with_misbehave(Act::Answer("yes"), limits).await;
    for prompt in ["huge body", "huge header", "many headers"] {
        refusal(&customer, prompt).await;
        assert!(upstream.seen().is_empty(), "{prompt}");
    }
    // more than the limit on the wire, less than what may be piled up
    let header = format!("fetch\nx-big: {}", "a".repeat(5000));
    refusal(&customer, &header).await;
    assert!(upstream.seen().is_empty());

    let text = |bytes: usize| -> &'static str { "a".repeat(bytes).leak() };
    let header = Act::Say(200, vec![("x-big", text(5000))], "");
    let body = Act::Say(200, vec![], text((1 << 20) + 1));
    for act in [header, body] {
        upstream.act(act);
        refusal(&customer, "fetch").await;
    }
    upstream.act(Act::Say(200, vec![("x-big", text(3000))], text(1000)));
    customer.post("/generate", ask("fetch")).await.expect(200);
}

#[tokio::test]
async fn each_model_has_connections_of_its_own() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let one = misbehave(upstream.url(), "");
    let other = one
        .replace("id = 2", "id = 3")
        .replace("\"misbehave\"\n", "\"another\"\n");
    let (_host, customer) = with_config(format!("{one}{other}")).await;
    let fetch = |model: i64| json!({ "text": "fetch", "model_id": model });
    let models = [2, 3, 2, 3, 3, 2, 2, 3];
    for model in models {
        customer.post("/generate", fetch(model)).await.expect(200);
    }
    let peers: Vec<_> = upstream.seen().iter().map(|seen| seen.peer).collect();
    // one may be free again only after its answer has reached the client
    for (peer, model) in peers.iter().zip(models) {
        let mut users = peers.iter().zip(models).filter(|(used, _)| *used == peer);
        assert!(users.all(|(_, user)| user == model), "{peers:?}");
    }
}

#[tokio::test]
async fn settings_of_the_network_that_make_no_sense_are_refused() {
    let host = Host::start().await.ready().await;
    for (more, at, why) in [
        (
            "api_key_header = \"x y\"",
            "api_key_header",
            "no header's name",
        ),
        (
            "api_key_header = \"Host\"",
            "api_key_header",
            "meaning of its own",
        ),
        (
            "grants = [\"https://a.example/path\"]",
            "grants[0]",
            "host and port alone",
        ),
        (
            "grants = [\"https://a.example?q\"]",
            "grants[0]",
            "host and port alone",
        ),
        (
            "grants = [\"https://b@a.example\"]",
            "grants[0]",
            "user name",
        ),
        (
            "grants = [\"https://a.example\", \"a.example\"]",
            "grants[1]",
            "http or https",
        ),
        (
            "grants = [\"ftp://a.example\"]",
            "grants[0]",
            "http or https",
        ),
        (
            "[models.limits]\nheader_bytes = 0",
            "limits.header_bytes",
            "from 1 to",
        ),
        (
            "[models.limits]\nrequest_bytes = 0",
            "limits.request_bytes",
            "at least 1",
        ),
    ] {
        host.write_config(&misbehave("http://127.0.0.1:9/", more));
        let reply = host.admin().post("/admin/reload", Value::Null).await;
        let message = reply.body["error"]["message"].to_string();
        assert_eq!(reply.expect_error(409), "invalid_configuration", "{more}");
        let names_both = message.contains(&format!("models[0].{at}: ")) && message.contains(why);
        assert!(names_both, "{more}: {message}");
    }
    let without = misbehave("http://127.0.0.1:9/", "").replace("api_url = ", "#");
    host.write_config(&without.replace("api_key = ", "#"));
    host.admin()
        .post("/admin/reload", Value::Null)
        .await
        .expect(200);
    eventually("the reason is told", async || {
        let reason = shown(&host, 2).await["reason"].to_string();
        reason.contains("no api_url")
    })
    .await;
}
