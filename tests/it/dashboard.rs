//! The dashboard, over HTTP and in a real browser.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use reqwest::Method;
use serde_json::json;
use thirtyfour::prelude::*;

use crate::harness::{ADMIN_KEY, Host, Reply, eventually};

/// Chromium's driver, on a port of its own choice.
struct Driver {
    child: Child,
    url: String,
}

impl Driver {
    fn start() -> Self {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed: run the tests by tests/run");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| {
                let port = line.split("successfully on port ").nth(1)?;
                port.trim_end_matches('.').parse::<u16>().ok()
            })
            .expect("chromedriver says its port");
        Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        }
    }

    async fn browser(&self, profile: &std::path::Path) -> WebDriver {
        let mut wanted = DesiredCapabilities::chrome();
        for argument in [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", profile.display()),
        ] {
            wanted.add_arg(argument).expect("an argument");
        }
        WebDriver::new(&self.url, wanted).await.expect("a browser")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test]
async fn an_operator_signs_in_manages_a_key_and_signs_out() -> WebDriverResult<()> {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 2 });
    let answer = customer.post("/generate", ask.clone()).await.expect(200);

    let (driver, profile) = (Driver::start(), tempfile::tempdir().expect("a folder"));
    let browser = driver.browser(profile.path()).await;
    browser.goto(format!("{}/dashboard/1", host.url())).await?;
    browser
        .find(By::Css("#key"))
        .await?
        .send_keys(ADMIN_KEY)
        .await?;
    browser
        .find(By::Css("form.box button"))
        .await?
        .click()
        .await?;
    let page = browser.find(By::Css("main")).await?.text().await?;
    assert_eq!(browser.current_url().await?.path(), "/dashboard/1");
    assert!(
        page.contains("gpt2") && page.contains("Customer Inc"),
        "{page}"
    );
    let cost = answer["cost"].as_f64().expect("a number");
    assert!(page.contains(&format!("${cost}")), "{page}");
    assert!(browser.find(By::Css("svg")).await?.is_displayed().await?);

    browser
        .goto(format!("{}/dashboard/1/keys/new", host.url()))
        .await?;
    browser
        .find(By::Css("#name"))
        .await?
        .send_keys("From the browser")
        .await?;
    browser
        .find(By::Css("form.box button"))
        .await?
        .click()
        .await?;
    let page = browser.find(By::Css("main")).await?.text().await?;
    let key = page
        .split_whitespace()
        .find(|word| word.starts_with("mhk_") && word.len() > 20)
        .unwrap_or_else(|| panic!("no key on {page}"))
        .to_owned();
    let made = host.anyone().with_header("x-api-key", key.clone());
    made.post("/generate", ask.clone()).await.expect(200);

    browser.goto(format!("{}/dashboard/1", host.url())).await?;
    let page = browser.source().await?;
    assert!(!page.contains(&key), "a key is shown once");
    browser
        .find(By::Css("form[action$='/keys/2/active'] button"))
        .await?
        .click()
        .await?;
    eventually("the key is off", async || {
        made.post("/generate", ask.clone()).await.status == 403
    })
    .await;

    browser
        .find(By::Css("form[action='/logout'] button"))
        .await?
        .click()
        .await?;
    browser.goto(format!("{}/dashboard/1", host.url())).await?;
    assert_eq!(browser.current_url().await?.path(), "/login");
    browser.quit().await
}

/// Signs in; the cookie to send from then on.
async fn sign_in(host: &Host, key: &str) -> Reply {
    let form = host
        .anyone()
        .request(Method::POST, "/login")
        .form(&[("key", key), ("next", "")]);
    Reply::of(form.send().await.expect("an answer")).await
}

#[tokio::test]
async fn nobody_sees_a_page_without_a_key() {
    let host = Host::start().await;
    host.customer().await;
    let reply = host.anyone().get("/dashboard/1").await;
    assert!(
        reply.header("location").starts_with("/login"),
        "{:?}",
        reply.headers
    );
    assert_eq!(reply.status, 303);
    let wrong = sign_in(&host, "mhk_wrong").await;
    assert_eq!(wrong.status, 401);
    assert!(!wrong.headers.contains_key("set-cookie"));
    let forged = host
        .anyone()
        .with_header("cookie", "model-host-session=99999999999%20admin".into());
    assert_eq!(forged.get("/dashboard/1").await.status, 303);
}

#[tokio::test]
async fn a_customer_sees_its_own_page_alone() {
    let host = Host::start().await;
    let (one, _two) = (host.customer().await, host.customer().await);
    let signed = sign_in(&host, one.key()).await;
    assert_eq!(signed.status, 303);
    let cookie = signed.header("set-cookie").to_owned();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    let browser = host.anyone().with_header("cookie", cookie);
    let page = browser.get("/dashboard/1").await;
    for (name, part) in [
        ("content-security-policy", "default-src 'none'"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert!(
            page.header(name).contains(part),
            "{name}: {}",
            page.header(name)
        );
    }
    page.expect(200);
    let (foreign, missing) = (
        browser.get("/dashboard/2").await,
        browser.get("/dashboard/99").await,
    );
    assert_eq!(
        (foreign.status.as_u16(), missing.status.as_u16()),
        (404, 404)
    );
    // a key that is turned off ends its sessions
    host.admin()
        .post("/api/keys/1/toggle", json!(null))
        .await
        .expect(200);
    assert_eq!(browser.get("/dashboard/1").await.status, 303);
    // and a key in a header needs no session
    host.admin().get("/dashboard/2").await.expect(200);
}

#[tokio::test]
async fn what_people_wrote_is_text_on_the_page() {
    let host = Host::start().await;
    let new = json!({ "name": "<script>alert(1)</script>", "email": "a@b.c" });
    host.admin().post("/customers", new).await.expect(201);
    let page = host.admin().get("/dashboard/1").await.expect(200);
    let page = page.as_str().expect("a page");
    assert!(
        !page.contains("<script>") && page.contains("&lt;script&gt;"),
        "{page}"
    );
}

#[tokio::test]
async fn a_form_of_another_site_does_nothing() {
    let host = Host::start().await;
    host.customer().await;
    let cookie = sign_in(&host, ADMIN_KEY).await;
    let cookie = cookie
        .header("set-cookie")
        .split(';')
        .next()
        .unwrap_or_default()
        .to_owned();
    let post = |name: &'static str, value: &'static str| {
        let browser = host.anyone().with_header("cookie", cookie.clone());
        let request = browser.request(Method::POST, "/dashboard/1/keys/1/active");
        request
            .header(name, value)
            .form(&[("active", "false")])
            .send()
    };
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("origin", "https://elsewhere.example"),
    ] {
        let reply = post(name, value).await.expect("an answer");
        assert_eq!(reply.status(), 403, "{name}");
    }
    assert_eq!(
        host.admin().get("/api/keys/1").await.expect(200)["is_active"],
        true
    );
    let reply = post("sec-fetch-site", "same-origin")
        .await
        .expect("an answer");
    assert_eq!(reply.status(), 303);
    assert_eq!(
        host.admin().get("/api/keys/1").await.expect(200)["is_active"],
        false
    );
}
