//! The adapters of this repository, each against an API that plays its format by a
//! script.

mod api;
mod formats;

use std::time::Duration;

use plugin_sdk::{Error, ErrorKind, Event, Request};
use tokio::time::timeout;

use self::api::{Api, Asked, Step, answer, at_once, begun, streamed};
use self::formats::formats;
use crate::models::component::{Completion, Component};

/// How long to wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an answer says, with texts in a row as one: events, or the error after them.
async fn all(component: &Component, request: Request) -> (Vec<Event>, Option<Error>) {
    let mut said = Vec::new();
    let error = match component.generate(request).await {
        Ok(mut completion) => rest(&mut completion, &mut said).await.err(),
        Err(error) => Some(error),
    };
    (said, error)
}

async fn rest(completion: &mut Completion, said: &mut Vec<Event>) -> Result<(), Error> {
    while !matches!(said.last(), Some(Event::Finish(_))) {
        for event in completion.next().await? {
            match (said.last_mut(), event) {
                (Some(Event::Text(before)), Event::Text(text)) => *before += &text,
                (_, event) => said.push(event),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_is_the_same_however_it_comes() {
    for format in formats() {
        let bytes = format.stream.as_bytes();
        for (script, is_streamed) in [
            (answer(200, "", format.whole), false),
            // an API that does not stream although it is asked to
            (
                answer(200, "content-type: application/json\r\n", format.whole),
                true,
            ),
            (streamed([bytes]), true),
            (streamed(bytes.chunks(1)), true),
            (streamed(bytes.chunks(7)), true),
        ] {
            let mut api = Api::start([script]).await;
            let component = format.open(&api, &[]).await;
            let (events, error) = all(&component, format.request(is_streamed)).await;
            assert_eq!(
                (error, &events),
                (None, &format.events),
                "{}",
                format.plugin
            );

            let Asked { head, body, .. } = api.requests.recv().await.unwrap();
            let path = format!("post /v1{} http/1.1", format.path);
            assert!(head.starts_with(&path), "{head}");
            assert!(head.contains("x-request-id: r-1"), "{head}");
            let is_anthropic = format.plugin == "anthropic";
            assert_eq!(head.contains("anthropic-version: 2023-06-01"), is_anthropic);
            assert_eq!(body["model"], "thinker");
            assert_eq!(body["max_tokens"], 8);
            assert_eq!(body["stream"] == true, is_streamed, "{body}");
            let asks_for_usage = body["stream_options"]["include_usage"] == true;
            assert_eq!(asks_for_usage, is_streamed && !is_anthropic, "{body}");
        }
    }
}

#[tokio::test]
async fn the_first_event_arrives_while_the_api_holds_the_rest_back() {
    for format in formats() {
        let (first, last) = format.cut_behind_the_first_text();
        let mut script = begun([first]);
        script.push(Step::Hold);
        script.extend(streamed([last]).into_iter().skip(1));
        let api = Api::start([script]).await;
        let component = format.open(&api, &[]).await;
        let started = component.generate(format.request(true));
        let mut completion = timeout(PATIENCE, started).await.unwrap().unwrap();
        let mut said = Vec::new();
        while !matches!(said.last(), Some(Event::Text(text)) if text == "Crabs: ") {
            said.extend(timeout(PATIENCE, completion.next()).await.unwrap().unwrap());
        }
        api.held.add_permits(1);
        rest(&mut completion, &mut said).await.unwrap();
        assert_eq!(said, format.events, "{}", format.plugin);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_after_what_it_said() {
    for format in formats() {
        let (first, _) = format.cut_behind_the_first_text();
        let reported = [first, format.error.as_bytes()].concat();
        let mut cut = begun([first]);
        cut.push(Step::Cut);
        let mut garbled = begun([first]);
        garbled.push(Step::Send(b"no chunk\r\n".into()));
        for (script, kind) in [
            (cut, ErrorKind::Upstream),
            // the failure is there as soon as what was said before it
            (at_once(garbled), ErrorKind::Upstream),
            // the connection ends as it should, the answer does not
            (streamed([first]), ErrorKind::Upstream),
            (streamed([first, b"data: rubbish\n\n"]), ErrorKind::Upstream),
            (
                streamed([first, format.error.as_bytes()]),
                ErrorKind::Overloaded,
            ),
            (streamed([reported.as_slice()]), ErrorKind::Overloaded),
        ] {
            let api = Api::start([script]).await;
            let component = format.open(&api, &[]).await;
            let (said, error) = all(&component, format.request(true)).await;
            assert_eq!(said.last(), Some(&Event::Text("Crabs: ".to_owned())));
            assert_eq!(
                error.map(|error| error.kind),
                Some(kind),
                "{}",
                format.plugin
            );
        }
        let half = &format.whole[..20];
        let api = Api::start([answer(200, "", half)]).await;
        let component = format.open(&api, &[]).await;
        let (said, error) = all(&component, format.request(false)).await;
        assert_eq!((said.len(), error.unwrap().kind), (0, ErrorKind::Upstream));
    }
}

#[tokio::test]
async fn an_apis_refusals_have_their_kinds() {
    use ErrorKind::{
        ContextLength, InvalidRequest, Overloaded, RateLimited, Upstream, UpstreamAuth,
    };
    let openai = r#"{"error":{"message":"so it is","type":"t","code":"context_length_exceeded"}}"#;
    let anthropic =
        r#"{"type":"error","error":{"type":"t","message":"prompt is too long: 9 > 8"}}"#;
    for format in formats() {
        let too_long = if format.plugin == "anthropic" {
            anthropic
        } else {
            openai
        };
        for (status, body, kind, wait) in [
            (
                400,
                r#"{"error":{"message":"so it is"}}"#,
                InvalidRequest,
                None,
            ),
            (400, too_long, ContextLength, None),
            (401, "{}", UpstreamAuth, None),
            (404, "{}", Upstream, None),
            (429, "{}", RateLimited, Some(7000)),
            (500, "<html>", Upstream, None),
            (529, "{}", Overloaded, Some(7000)),
        ] {
            let mut api = Api::start([answer(status, "retry-after: 7\r\n", body)]).await;
            let component = format.open(&api, &[]).await;
            let (said, error) = all(&component, format.request(true)).await;
            let error = error.unwrap();
            assert_eq!((said.len(), error.kind), (0, kind), "{status} {error:?}");
            assert_eq!(error.upstream_status, Some(status));
            assert_eq!(error.retry_after_ms, wait, "{status}");
            assert_eq!(
                error.message.contains("so it is"),
                body.contains("so it is")
            );
            api.requests.recv().await.unwrap();
            assert!(api.requests.try_recv().is_err(), "{status} was tried again");
        }
    }
}

#[tokio::test]
async fn retries_are_made_where_the_operator_wants_them() {
    for format in formats() {
        let busy = answer(503, "retry-after: 0\r\n", "");
        let scripts = [busy.clone(), busy, answer(200, "", format.whole)];
        let mut api = Api::start(scripts).await;
        let component = format.open(&api, &[("retries", "2")]).await;
        let (events, error) = all(&component, format.request(false)).await;
        assert_eq!((error, &events), (None, &format.events));
        for _ in 0..3 {
            api.requests.recv().await.unwrap();
        }
        let (_, error) = {
            let later = answer(429, "retry-after: 3600\r\n", "");
            let api = Api::start([later]).await;
            let component = format.open(&api, &[("retries", "2")]).await;
            all(&component, format.request(false)).await
        };
        assert_eq!(error.unwrap().retry_after_ms, Some(3_600_000));
    }
}

#[tokio::test]
async fn leaving_a_stream_ends_it_at_the_api() {
    for format in formats() {
        let (first, _) = format.cut_behind_the_first_text();
        let mut script = begun([first]);
        script.push(Step::Hold);
        let mut api = Api::start([script]).await;
        let component = format.open(&api, &[]).await;
        let mut completion = component.generate(format.request(true)).await.unwrap();
        completion.next().await.unwrap();
        drop(completion);
        timeout(PATIENCE, api.gone.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_stream() {
    for format in formats() {
        let mut api = Api::start([streamed([format.stream.as_bytes()])]).await;
        let component = format.open(&api, &[]).await;
        let mut last = 0;
        for _ in 0..20 {
            let (events, error) = all(&component, format.request(true)).await;
            assert_eq!((error, &events), (None, &format.events));
            last = api.requests.recv().await.unwrap().connection;
        }
        // a busy machine may be late with an end
        assert!(last < 10, "{}: {} connections", format.plugin, last + 1);
    }
}
