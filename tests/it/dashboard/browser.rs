//! A real browser: Chromium without a window, by ChromeDriver.

use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use thirtyfour::prelude::*;
use thirtyfour::{ChromeCapabilities, ChromiumLikeCapabilities};

use crate::harness::PATIENCE;

/// Between two looks at a page.
const PAUSE: Duration = Duration::from_millis(50);

/// A browser with a profile of its own; both end with the test.
pub struct Browser {
    pub driver: WebDriver,
    process: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser that has never been anywhere.
    pub async fn start() -> Self {
        // harmless when another test was first
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // the browser joins the group and is ended with it
            .process_group(0)
            .spawn()
            .expect("chromedriver starts: tests/run installs it");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let port = output.lines().map_while(Result::ok).find_map(|line| {
            let port = line.split_once("successfully on port ")?.1;
            Some(port.trim_end_matches('.').to_owned())
        });
        let url = format!("http://127.0.0.1:{}", port.expect("chromedriver's port"));
        let profile = TempDir::new().expect("a folder");
        let driver = WebDriver::new(url, capabilities(&profile)).await;
        Self {
            driver: driver.expect("a browser"),
            process,
            _profile: profile,
        }
    }

    /// Goes to an address.
    pub async fn open(&self, url: &str) {
        self.driver.goto(url).await.expect("a page");
    }

    /// The element, waited for.
    #[track_caller]
    pub fn find(&self, css: &str) -> impl Future<Output = WebElement> {
        let query = self.driver.query(By::Css(css)).wait(PATIENCE, PAUSE);
        found(css, query)
    }

    /// The element that has this text, waited for.
    #[track_caller]
    pub fn find_text(&self, css: &str, text: &str) -> impl Future<Output = WebElement> {
        let query = self.driver.query(By::Css(css)).wait(PATIENCE, PAUSE);
        found((css, text), query.with_text(text.to_owned()))
    }

    /// Clicks on the element.
    pub async fn click(&self, css: &str) {
        self.find(css).await.click().await.expect("a click");
    }

    /// Types into the element, in place of what is there.
    pub async fn fill(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.expect("a field");
        field.send_keys(text).await.expect("a field");
    }

    /// The element's text.
    pub async fn text(&self, css: &str) -> String {
        self.find(css).await.text().await.expect("text")
    }

    /// The path of the page's address.
    pub async fn path(&self) -> String {
        let url = self.driver.current_url().await.expect("an address");
        url.path().to_owned()
    }
}

#[track_caller]
fn found(
    what: impl Debug,
    query: thirtyfour::extensions::query::ElementQuery,
) -> impl Future<Output = WebElement> {
    let caller = std::panic::Location::caller();
    async move {
        let element = query.first().await;
        element.unwrap_or_else(|error| panic!("{caller}: no {what:?}: {error}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // or it would wait for the end of a session that is gone
        self.driver.clone().leak().ok();
        let group = format!("-{}", self.process.id());
        Command::new("kill")
            .args(["-s", "KILL", "--", &group])
            .status()
            .ok();
        self.process.wait().ok();
    }
}

fn capabilities(profile: &TempDir) -> ChromeCapabilities {
    let mut chrome = DesiredCapabilities::chrome();
    let profile = format!("--user-data-dir={}", profile.path().display());
    for argument in [
        &profile,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        // containers have a small /dev/shm
        "--disable-dev-shm-usage",
        // nothing of its own accord
        "--disable-quic",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ] {
        chrome.add_arg(argument).expect("an argument");
    }
    chrome
}
