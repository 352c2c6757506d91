//! The dashboard: by a browser as people use it, and by hand what a browser
//! would not do.

mod bills;
mod browser;
mod forms;
mod keys;
mod money;
mod session;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, COOKIE};
use serde_json::json;

use crate::harness::{ADMIN_KEY, Client, GPT2, Host, Reply, eventually};
use browser::Browser;

const FORM: &str = "application/x-www-form-urlencoded";

/// Sends a form, with more headers.
pub async fn submit(client: &Client, path: &str, form: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = client
        .request(Method::POST, path)
        .header(CONTENT_TYPE, FORM)
        .body(form.to_owned());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Reply::of(request.send().await.expect("an answer")).await
}

/// Signs in; the cookie as it was set.
async fn set_cookie(host: &Host, key: &str, headers: &[(&str, &str)]) -> String {
    let reply = submit(&host.anyone(), "/login", &format!("key={key}"), headers).await;
    assert_eq!(reply.status, 303, "{}", reply.body);
    assert_eq!(reply.header("location"), "/dashboard");
    reply.header("set-cookie").to_owned()
}

/// Somebody who is signed in.
async fn signed_in(host: &Host, key: &str) -> Client {
    let cookie = set_cookie(host, key, &[]).await;
    with_cookie(host, cookie.split(';').next().unwrap_or_default())
}

fn with_cookie(host: &Host, cookie: &str) -> Client {
    let cookie = cookie.to_owned();
    host.anyone().with_header(COOKIE.as_str(), cookie)
}

/// The page, if the status is this one.
#[track_caller]
fn page(reply: Reply, status: u16) -> String {
    assert_eq!(reply.header("content-type"), "text/html; charset=utf-8");
    let text = reply.expect(status);
    text.as_str().expect("a page").to_owned()
}

#[track_caller]
fn assert_asks_to_sign_in(reply: &Reply) {
    assert_eq!(reply.status, 303);
    let location = reply.header("location");
    assert!(location.starts_with("/login"), "{location}");
}

#[tokio::test]
async fn an_operator_sees_usage_and_manages_keys_in_a_browser() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let ask = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 4 });
    for _ in 0..2 {
        customer.post("/generate", ask.clone()).await.expect(200);
    }
    let usage = customer.get("/usage").await.expect(200)["totals"].take();
    let tokens = usage["prompt_tokens"]
        .as_i64()
        .zip(usage["completion_tokens"].as_i64());
    let tokens = tokens.map(|(prompt, completion)| prompt + completion);

    // signing in leads to the page that was asked for
    let browser = Browser::start().await;
    browser.open(&format!("{}/dashboard/1", host.url())).await;
    browser.fill("#key", ADMIN_KEY).await;
    browser.click("main button").await;
    browser.find("#total-requests").await;
    assert_eq!(browser.path().await, "/dashboard/1");

    assert_eq!(browser.text("#total-requests").await, "2");
    assert_eq!(
        browser.text("#total-tokens").await,
        tokens.expect("integers").to_string()
    );
    let cost = browser.text("#total-cost").await;
    let cost: f64 = cost.trim_start_matches('$').parse().expect("dollars");
    assert_eq!(json!(cost), usage["cost"]);
    assert!(browser.text("#usage tbody").await.starts_with("gpt2 #1 2 "));
    assert!(browser.text("#requests tbody").await.contains(" gpt2 ok "));
    same_in_graph_and_table(&browser, "month", "2 requests in 30 days").await;
    same_in_graph_and_table(&browser, "day", "2 requests in 24 hours").await;
    // the policy lets our own style in
    let width = browser.find("main").await.css_value("max-width").await;
    assert_eq!(width.expect("a style"), "1088px");

    // a key that a form created is a key
    browser.click("#keys a.button").await;
    browser.fill("#name", "From the form").await;
    browser.fill("#rate_limit", "7").await;
    browser.fill("#concurrent_limit", "3").await;
    browser.click("input[value='keys:read']").await;
    browser.fill("#allowed_networks", "127.0.0.0/8, ::1").await;
    // how a date is typed depends on where the browser believes itself to be
    let end = "document.querySelector('#expires_at').value = '2999-12-31T22:00'";
    browser.driver.execute(end, vec![]).await.expect("a field");
    browser.click("main form button").await;
    let text = browser.text("#new-key").await;
    let key = host.anyone().with_header("x-api-key", text.clone());
    let answer = key.post("/generate", ask.clone()).await;
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "7");
    answer.expect(200);

    let shown = host
        .admin()
        .get("/api/keys?customer_id=1")
        .await
        .expect(200);
    let shown = shown["keys"]
        .as_array()
        .expect("a list")
        .last()
        .expect("a key")
        .clone();
    assert_eq!(
        shown["scopes"],
        json!(["generate", "models:read", "usage:read", "customer:read"])
    );
    assert_eq!(shown["allowed_networks"], json!(["127.0.0.0/8", "::1/128"]));
    assert_eq!(shown["expires_at"], "2999-12-31T22:00:00Z");
    assert_eq!(
        (&shown["token_limit"], &shown["concurrent_limit"]),
        (&json!(null), &json!(3))
    );

    // it is shown this once
    browser.click("main a.button").await;
    browser.find_text("#keys td", "From the form").await;
    let source = browser.driver.source().await.expect("a page");
    assert!(source.contains(&text[.."mhk_12345678_".len()]));
    assert!(!source.contains(&text["mhk_12345678_".len()..]));

    // off, on, and gone
    browser
        .click("button[aria-label='Turn off From the form']")
        .await;
    browser
        .find("button[aria-label='Turn on From the form']")
        .await;
    let refused = key.post("/generate", ask.clone()).await;
    assert_eq!(refused.expect_error(403), "key_disabled");
    browser
        .click("button[aria-label='Turn on From the form']")
        .await;
    browser
        .find("button[aria-label='Turn off From the form']")
        .await;
    key.get("/usage").await.expect(200);
    browser.click("a[aria-label='Delete From the form']").await;
    browser.click("button.danger").await;
    browser.find("#keys").await;
    let keys = browser.text("#keys tbody").await;
    assert!(!keys.contains("From the form"), "{keys}");
    assert_eq!(key.get("/usage").await.expect_error(401), "invalid_api_key");

    // signing out
    browser.click("header button").await;
    browser.find("#key").await;
    browser.open(&format!("{}/dashboard/1", host.url())).await;
    browser.find("#key").await;
    assert_eq!(browser.path().await, "/login");
}

/// That the graph says what the table under it says.
async fn same_in_graph_and_table(browser: &Browser, range: &str, label: &str) {
    browser
        .click(&format!("#over-time nav a[href*='range={range}']"))
        .await;
    browser
        .find(&format!("svg[aria-label='{label}'] .bar"))
        .await;
    let both = "const titles = [...document.querySelectorAll('#over-time title')]; \
        const rows = [...document.querySelectorAll('#over-time tbody tr')].reverse(); \
        const cell = (row, place) => row.children[place].textContent; \
        return [titles.map(title => title.textContent), rows.map(row => { \
        const [, clock] = cell(row, 0).match(/([0-9:]+)$/) || []; \
        const tokens = Number(cell(row, 2)) + Number(cell(row, 3)); \
        return `${clock || cell(row, 0)}: ${cell(row, 1)} requests, ${tokens} tokens, ${cell(row, 4)}` })]";
    let found = browser.driver.execute(both, vec![]).await.expect("both");
    let [titles, rows]: [Vec<String>; 2] = found.convert().expect("texts");
    assert_eq!(titles, rows);
    let used = rows.iter().map(|row| {
        let (before, _) = row.split_once(" requests").expect("requests");
        let count = before.rsplit(' ').next().expect("a count");
        count.parse::<i64>().expect("a number")
    });
    assert_eq!(used.sum::<i64>(), 2, "{rows:?}");
}

#[tokio::test]
async fn a_customer_sees_its_own_page_alone() {
    let host = Host::start().await;
    let (one, two) = (host.customer().await, host.customer().await);
    let viewer = signed_in(&host, one.key()).await;
    let home = viewer.get("/dashboard").await;
    assert_eq!(
        (home.status.as_u16(), home.header("location")),
        (303, "/dashboard/1")
    );
    let own = page(viewer.get("/dashboard/1").await, 200);
    assert!(own.contains("Customer Inc"), "{own}");
    assert!(
        own.contains("id=\"keys\"") && !own.contains("Create a key"),
        "{own}"
    );

    // somebody else's is told in nothing from nobody's
    let foreign = viewer.get("/dashboard/2").await;
    let missing = viewer.get("/dashboard/3").await;
    let (ids, pages): (Vec<_>, Vec<_>) = [foreign, missing]
        .into_iter()
        .map(|reply| (reply.header("x-request-id").to_owned(), page(reply, 404)))
        .unzip();
    assert_eq!(pages[0].replace(&ids[0], ""), pages[1].replace(&ids[1], ""));

    // and it changes nothing
    page(viewer.get("/dashboard/1/keys/new").await, 403);
    let new = "name=More&rate_limit=60&scopes=generate&allowed_models=1";
    page(submit(&viewer, "/dashboard/1/keys", new, &[]).await, 403);
    page(
        submit(&viewer, "/dashboard/2/keys/2/active", "active=false", &[]).await,
        403,
    );
    page(
        submit(&viewer, "/dashboard/2/keys/2/delete", "", &[]).await,
        403,
    );
    two.get("/usage").await.expect(200);
}

#[tokio::test]
async fn a_key_in_a_header_opens_a_page_as_it_does_the_api() {
    let host = Host::start().await;
    let customer = host.customer().await;
    page(host.admin().get("/dashboard/1").await, 200);
    page(customer.get("/dashboard/1").await, 200);
    let bearer = format!("Bearer {}", customer.key());
    page(
        customer
            .with_header("authorization", bearer)
            .get("/dashboard/1")
            .await,
        200,
    );
    let wrong = host.anyone().with_header("x-admin-key", "wrong".to_owned());
    page(wrong.get("/dashboard/1").await, 401);
    for path in ["/", "/dashboard"] {
        assert_eq!(host.anyone().get(path).await.status, 303);
    }
    assert_eq!(
        host.anyone()
            .get("/dashboard/1?range=month")
            .await
            .header("location"),
        "/login?next=%2Fdashboard%2F1%3Frange%3Dmonth"
    );
}

#[tokio::test]
async fn names_are_shown_as_text() {
    let host = Host::start().await;
    let markup = "<script>alert(1)</script>\"'&";
    let new = json!({ "name": markup, "email": "<b>@example.com", "company": markup });
    host.admin().post("/customers", new).await.expect(201);
    let new = json!({ "customer_id": 1, "name": markup });
    host.admin().post("/api/keys", new).await.expect(201);
    for path in [
        "/dashboard",
        "/dashboard/1",
        "/dashboard/1/keys/1/delete",
        "/dashboard/1/keys/1/rotate",
        "/dashboard/1/keys/new",
    ] {
        let text = page(host.admin().get(path).await, 200);
        assert!(
            !text.contains("<script") && !text.contains("<b>"),
            "{path}: {text}"
        );
        assert!(
            text.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;"),
            "{path}: {text}"
        );
    }
    let next = page(
        host.anyone().get("/login?next=%22%3E%3Cscript%3E").await,
        200,
    );
    assert!(!next.contains("<script"), "{next}");
}

#[tokio::test]
async fn every_answer_tells_the_browser_what_a_page_may_do() {
    let host = Host::start().await;
    host.customer().await;
    let admin = host.admin();
    for (path, status) in [
        ("/login", 200),
        ("/dashboard", 200),
        ("/dashboard/1", 200),
        ("/dashboard/1?range=month&paused=true", 200),
        ("/dashboard/1?range=century", 422),
        ("/dashboard/7", 404),
        ("/dashboard/one", 404),
        ("/dashboard/style.css", 200),
        ("/logout", 405),
        ("/", 303),
    ] {
        let reply = admin.get(path).await;
        assert_eq!(reply.status.as_u16(), status, "{path}");
        let policy = reply.header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "style-src 'self'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert!(
            policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
            "{path}"
        );
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("referrer-policy"), "same-origin");
        assert_eq!(reply.header("cache-control"), "no-store");
        assert!(!reply.header("x-request-id").is_empty());
        let is_live = reply.body.to_string().contains("http-equiv=\\\"refresh");
        assert_eq!(
            is_live,
            ["/dashboard", "/dashboard/1"].contains(&path),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_operator_sees_models_and_what_is_wrong_with_them() {
    let broken = "[[models]]\nid = 2\nname = \"broken\"\nplugin = \"missing.wasm\"\n";
    let config = format!("{GPT2}{broken}");
    let host = Host::builder()
        .config(config.as_str())
        .start()
        .await
        .ready()
        .await;
    let (customer, _) = (host.customer().await, host.customer().await);
    let ask = json!({ "text": "a", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", ask).await.expect(200);
    let models = host.admin().get("/models").await.expect(200)["models"].take();
    let source = models[0]["source"].as_str().expect("a source");
    let reason = models[1]["reason"].as_str().expect("a reason");
    let shown = reason.replace('"', "&quot;");

    let text = page(host.admin().get("/dashboard").await, 200);
    assert!(text.contains(&format!("<td>{source}</td>")), "{text}");
    assert!(
        text.contains("class=\"status unavailable\"") && text.contains(&shown),
        "{text}"
    );
    assert!(!text.contains("configuration-error"), "{text}");
    // the sums of the first customer, and of the second
    assert!(
        text.contains("<td class=\"figure\">1</td><td class=\"figure\">1</td>"),
        "{text}"
    );
    assert!(text.contains("<td class=\"figure\">$0.00</td>"), "{text}");

    host.write_config(&format!("{config}colour = 1\n"));
    eventually("the error is on the dashboard", async || {
        let text = page(host.admin().get("/dashboard").await, 200);
        text.contains("id=\"configuration-error\"") && text.contains("colour")
    })
    .await;
    let own = page(customer.get("/dashboard/1").await, 200);
    assert!(!own.contains("colour"), "{own}");
}
