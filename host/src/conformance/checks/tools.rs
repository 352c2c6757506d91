//! Calls of tools, for plugins that promise them.

use plugin_sdk::{Event, FinishReason, Message, Prompt, Role, Tool, ToolCall};
use serde_json::Value;

use super::answers::{TEXT, say};
use super::{Unmet, Verdict, unmet};
use crate::conformance::subject::{Kind, Manner, Subject};
use crate::conformance::upstream::{Pieces, Reply};

const NAME: &str = "weather_report";
const ARGUMENTS: &str = r#"{"city":"Zürich","days":[1,2]}"#;
const REPORT: &str = "sunny, 21 °C";

/// Whether the upstream's last request says this somewhere.
fn is_passed_on(subject: &Subject, text: &str) -> bool {
    let seen = subject.upstream.seen();
    seen.last()
        .is_some_and(|seen| seen.body.to_string().contains(text))
}

pub(super) async fn calls(subject: &Subject) -> Verdict {
    if !subject.promises("tools") {
        return Err(Unmet::Skipped("doesn't have \"tools\" among its features"));
    }
    if !subject.kinds.contains(&Kind::Chat) {
        return Err("expected \"chat\" beside \"tools\" among the features"
            .to_owned()
            .into());
    }
    for streamed in [false, true] {
        let kind = Kind::Chat;
        let manner = Manner { kind, streamed };
        let mut request = subject.request(manner, "How is the weather?");
        request.tools.push(Tool {
            name: NAME.to_owned(),
            description: "how the weather is".to_owned(),
            parameters: r#"{"type":"object","properties":{"city":{"type":"string"}}}"#.to_owned(),
        });
        let call = Reply::Call(NAME, ARGUMENTS);
        subject.upstream.play(call, Pieces::Records, None);
        let answer = subject.ask(request.clone()).await;
        if !is_passed_on(subject, NAME) {
            return Err(unmet(manner, "the tool in the upstream's request", &answer));
        }
        let called = answer.events.iter().find_map(|event| match event {
            Event::ToolCall(call) => Some(call.clone()),
            _ => None,
        });
        let ends = |reason| answer.end.as_ref().is_ok_and(|end| end.reason == reason);
        let Some(call) = called
            .filter(is_the_one)
            .filter(|_| ends(FinishReason::ToolCalls))
        else {
            let expected = format!("a call of {NAME} with {ARGUMENTS} and finish ToolCalls");
            return Err(unmet(manner, &expected, &answer));
        };

        // and once the tool has answered
        let user = Message::text(Role::User, "How is the weather?");
        let asked = Message {
            content: Vec::new(),
            tool_calls: vec![call.clone()],
            ..Message::text(Role::Assistant, "")
        };
        let told = Message {
            tool_call_id: Some(call.id),
            ..Message::text(Role::Tool, REPORT)
        };
        request.prompt = Prompt::Chat(vec![user, asked, told]);
        let said = say(TEXT, None);
        subject.upstream.play(said, Pieces::Records, None);
        let answer = subject.ask(request).await;
        if answer.text() != TEXT || !is_passed_on(subject, REPORT) {
            let expected = "an answer to what the tool said";
            return Err(unmet(manner, expected, &answer));
        }
    }
    Ok(None)
}

fn is_the_one(call: &ToolCall) -> bool {
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    let is_named = !call.id.is_empty() && call.name == NAME;
    is_named && json(&call.arguments) == json(ARGUMENTS)
}
