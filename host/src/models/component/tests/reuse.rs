//! Instances that answer more than one request, as the operator may allow.

use std::sync::Arc;
use std::time::Duration;

use plugin_sdk::{Event, Request};

use super::{Api, request, runtime, spec};
use crate::config::ModelLimits;
use crate::models::component::Component;

async fn open(limits: ModelLimits) -> Component {
    open_with("http://127.0.0.1:1/", limits).await
}

async fn open_with(api_url: &str, limits: ModelLimits) -> Component {
    let mut spec = spec("misbehave", Some(api_url));
    spec.limits = limits;
    Component::open(&runtime(), spec).await.unwrap()
}

fn reusing(requests_per_instance: u32) -> ModelLimits {
    ModelLimits {
        requests_per_instance,
        ..ModelLimits::default()
    }
}

/// The text of the answer, or nothing if it failed; its instance is free again then.
async fn said(component: &Component, prompt: &str) -> Option<String> {
    let mut completion = component.generate(request(prompt)).await.ok()?;
    let text = match completion.next().await.ok()?.remove(0) {
        Event::Text(text) => text,
        other => panic!("{other:?}"),
    };
    completion.end().await;
    Some(text)
}

async fn counted(component: &Component, times: usize) -> Vec<String> {
    let mut counts = Vec::new();
    for _ in 0..times {
        counts.push(said(component, "count").await.unwrap());
    }
    counts
}

#[tokio::test]
async fn an_instance_answers_as_many_requests_as_it_may() {
    let by_default = open(ModelLimits::default()).await;
    assert_eq!(counted(&by_default, 3).await, ["1", "1", "1"]);
    let twice = open(reusing(2)).await;
    assert_eq!(counted(&twice, 5).await, ["1", "2", "1", "2", "1"]);
}

#[tokio::test]
async fn an_instance_is_kept_until_its_last_request() {
    let component = open(reusing(2)).await;
    for is_kept in [true, false, true] {
        let mut completion = component.generate(request("count")).await.unwrap();
        completion.next().await.unwrap();
        assert_eq!(completion.is_kept(), is_kept);
        completion.end().await;
    }
}

#[tokio::test]
async fn one_that_failed_or_was_left_answers_no_other() {
    let component = open(reusing(100)).await;
    for ending in ["trap", "exit", "empty", "loop"] {
        assert_eq!(counted(&component, 2).await, ["1", "2"], "before {ending}");
        let request = Request {
            deadline_ms: 300,
            ..request(ending)
        };
        let failed = match component.generate(request).await {
            Ok(mut completion) => completion.next().await.is_err(),
            Err(_) => true,
        };
        assert!(failed, "{ending}");
    }
    // left in its middle, and before it began
    assert_eq!(counted(&component, 2).await, ["1", "2"]);
    let mut left = component.generate(request("endless stream")).await.unwrap();
    left.next().await.unwrap();
    left.end().await;
    assert_eq!(counted(&component, 2).await, ["1", "2"]);
    drop(component.session(Duration::from_secs(10)).await.unwrap());
    assert_eq!(counted(&component, 1).await, ["1"]);
}

#[tokio::test]
async fn one_that_has_filled_its_memory_answers_no_other() {
    let component = open(reusing(100)).await;
    assert_eq!(counted(&component, 2).await, ["1", "2"]);
    assert_eq!(said(&component, "leak").await.unwrap(), "3");
    assert_eq!(counted(&component, 1).await, ["1"]);
}

#[tokio::test]
async fn each_request_has_all_that_the_limits_allow() {
    let limits = ModelLimits {
        cpu_ms: 500,
        upstream_requests: 1,
        ..reusing(100)
    };
    let mut api = Api::answering("200 OK", "", "hello").await;
    let component = open_with(&api.url, limits).await;
    assert_eq!(counted(&component, 1).await, ["1"]);
    for _ in 0..4 {
        // more than half of the time that each has
        said(&component, "compute 300").await.unwrap();
        let fetched = said(&component, "fetch").await.unwrap();
        assert!(fetched.ends_with("hello"), "{fetched}");
        api.requests.recv().await.unwrap();
    }
    // all by one
    assert_eq!(counted(&component, 1).await, ["2"]);
}

#[tokio::test]
async fn requests_at_once_have_an_instance_each() {
    let component = Arc::new(open(reusing(100)).await);
    let mut asked = Vec::new();
    for _ in 0..8 {
        asked.push(component.generate(request("count")).await.unwrap());
    }
    for mut completion in asked {
        let said = completion.next().await.unwrap().remove(0);
        assert_eq!(said, Event::Text("1".to_owned()));
        completion.end().await;
    }
    assert_eq!(said(&component, "count").await.unwrap(), "2");
}
