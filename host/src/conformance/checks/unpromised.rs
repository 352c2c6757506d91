//! What is asked for beyond what a plugin promises: refused or followed, but not dropped.

use plugin_sdk::{
    Blob, Extension, FinishReason, Message, Part, Prompt, Request, Role, Tool, ToolCall,
};
use serde_json::{Map, Value};

use super::answers::{TEXT, say};
use super::{Unmet, Verdict, unmet};
use crate::conformance::subject::{Answer, Kind, Manner, Subject, Way};
use crate::conformance::upstream::Pieces;

/// What to ask for, and what makes a request ask for it.
type Asked = (&'static str, fn(&mut Request));

/// What needs a promise: the feature, and whether only a chat can have it.
const PROMISED: &[(&str, bool, Asked)] = &[
    ("tools", false, ("a tool", tool)),
    ("tools", false, ("tool_choice", choice)),
    ("tools", true, ("a call of a tool", call)),
    ("vision", true, ("an image", image)),
    ("vision", true, ("an image's URL", image_url)),
    // nobody can promise this one
    ("", true, ("an unknown part", unknown)),
];

/// What needs a tool beside it, and a promise of them.
const OF_TOOLS: &[Asked] = &[
    ("tool_choice", choice),
    ("parallel_tool_calls", |request| {
        extend(request, "parallel_tool_calls", "false");
    }),
    ("strict_tools", |request| {
        extend(request, "strict_tools", r#"["conformance"]"#);
    }),
];

/// What an answer tells whether it was followed.
const FORMAT: Asked = ("response_format", format);

/// What only models that reason can follow.
const EFFORT: Asked = ("reasoning_effort", |request| {
    extend(request, "reasoning_effort", "\"low\"");
});

/// What else an adapter must pass on or refuse.
const PASSED_ON: &[Asked] = &[
    ("temperature", |asked| asked.params.temperature = Some(0.5)),
    ("top_p", |asked| asked.params.top_p = Some(0.5)),
    ("top_k", |asked| asked.params.top_k = Some(3)),
    ("seed", |asked| asked.params.seed = Some(7)),
    ("frequency_penalty", |asked| {
        asked.params.frequency_penalty = Some(0.5);
    }),
    ("presence_penalty", |asked| {
        asked.params.presence_penalty = Some(0.5);
    }),
    ("verbosity", |asked| extend(asked, "verbosity", "\"low\"")),
    FORMAT,
    EFFORT,
];

fn extend(request: &mut Request, name: &str, value: &str) {
    request.ext.push(Extension::new(name, value));
}

fn tool(request: &mut Request) {
    request.tools.push(Tool {
        name: "conformance".to_owned(),
        description: "nothing".to_owned(),
        parameters: r#"{"type":"object","properties":{}}"#.to_owned(),
    });
}

fn choice(request: &mut Request) {
    extend(request, "tool_choice", "\"required\"");
}

fn format(request: &mut Request) {
    let schema = r#"{"name":"conformance","schema":{"type":"object"}}"#;
    let format = format!(r#"{{"type":"json_schema","json_schema":{schema}}}"#);
    extend(request, "response_format", &format);
}

fn image(request: &mut Request) {
    let image = Blob {
        media_type: "image/png".to_owned(),
        data: vec![0],
    };
    add(request, Part::Blob(image));
}

fn image_url(request: &mut Request) {
    let url = r#"{"url":"https://pictures.example/1.png"}"#;
    add(request, Part::Other(Extension::new("image_url", url)));
}

fn unknown(request: &mut Request) {
    add(request, Part::Other(Extension::new("x-conformance", "{}")));
}

/// Adds a part to the last message.
fn add(request: &mut Request, part: Part) {
    if let Prompt::Chat(messages) = &mut request.prompt
        && let Some(last) = messages.last_mut()
    {
        last.content.push(part);
    }
}

/// Adds a call of a tool and its answer.
fn call(request: &mut Request) {
    let Prompt::Chat(messages) = &mut request.prompt else {
        return;
    };
    let id = "call_1".to_owned();
    let mut called = Message::text(Role::Assistant, "");
    called.tool_calls.push(ToolCall {
        id: id.clone(),
        name: "conformance".to_owned(),
        arguments: "{}".to_owned(),
    });
    let mut told = Message::text(Role::Tool, "nothing");
    told.tool_call_id = Some(id);
    messages.extend([called, told]);
}

pub(super) async fn refused(subject: &Subject) -> Verdict {
    if subject.way == Way::UnknownFormat {
        return Err(Unmet::Skipped("speaks no format that the kit knows"));
    }
    let streamed = false;
    let manners = || subject.kinds.iter().map(|&kind| Manner { kind, streamed });
    for manner in manners() {
        for (feature, is_of_chats, asked) in PROMISED {
            if subject.promises(feature) || (*is_of_chats && manner.kind != Kind::Chat) {
                continue;
            }
            is_refused(subject, manner, asked).await?;
        }
    }
    for manner in manners() {
        if subject.way == Way::Local {
            is_followed(subject, manner).await?;
            continue;
        }
        is_passed_on(subject, manner, |_| {}, PASSED_ON).await?;
        if subject.promises("tools") && manner.kind == Kind::Chat {
            is_passed_on(subject, manner, tool, OF_TOOLS).await?;
        }
    }
    Ok(None)
}

async fn is_refused(subject: &Subject, manner: Manner, asked: &Asked) -> Result<(), Unmet> {
    let (answer, _) = ask(subject, manner, asked.1).await;
    match answer.refusal() {
        Some(_) => Ok(()),
        None => Err(dropped(manner, asked, &answer, "unsupported")),
    }
}

/// Of a local model's answer there is not much to tell.
async fn is_followed(subject: &Subject, manner: Manner) -> Result<(), Unmet> {
    if !subject.promises("reasoning") {
        is_refused(subject, manner, &EFFORT).await?;
    }
    let (answer, _) = ask(subject, manner, FORMAT.1).await;
    let is_object = match &answer.end {
        Ok(end) => is_object(&answer.text(), end.reason),
        Err(_) => answer.refusal().is_some(),
    };
    match is_object {
        true => Ok(()),
        false => {
            let expected = "unsupported, or a JSON object,";
            Err(dropped(manner, &FORMAT, &answer, expected))
        }
    }
}

/// Whether this is a JSON object, or begins as one where it is cut.
fn is_object(text: &str, reason: FinishReason) -> bool {
    let text = text.trim();
    match reason {
        FinishReason::Length => text.is_empty() || text.starts_with('{'),
        _ => serde_json::from_str::<Map<String, Value>>(text).is_ok(),
    }
}

/// What an adapter does not refuse must be in its upstream's request, beside what makes
/// it of use.
async fn is_passed_on(
    subject: &Subject,
    manner: Manner,
    beside: fn(&mut Request),
    all: &[Asked],
) -> Result<(), Unmet> {
    let (answer, plain) = ask(subject, manner, beside).await;
    let (_, again) = ask(subject, manner, beside).await;
    if answer.end.is_err() {
        return Err(unmet(manner, "an answer", &answer));
    }
    let Some(plain) = plain.filter(|plain| again.as_ref() == Some(plain)) else {
        return Err(Unmet::Skipped("asks its upstream in another way each time"));
    };
    for asked in all {
        let (answer, body) = ask(subject, manner, |request| {
            beside(request);
            asked.1(request);
        })
        .await;
        // what comes of it is not for this script to say: it may be read as something else
        let is_passed_on = body.is_some_and(|body| body != plain);
        if answer.refusal().is_none() && !is_passed_on {
            let expected = "unsupported, or another request of the upstream,";
            return Err(dropped(manner, asked, &answer, expected));
        }
    }
    Ok(())
}

/// Asks for more; the answer, and the body of the request that the upstream saw.
async fn ask(
    subject: &Subject,
    manner: Manner,
    more: impl Fn(&mut Request),
) -> (Answer, Option<Value>) {
    subject
        .upstream
        .play(say(TEXT, None), Pieces::Records, None);
    let mut request = subject.request(manner, "Hello");
    more(&mut request);
    let answer = subject.ask(request).await;
    let seen = subject.upstream.seen().pop();
    (answer, seen.map(|seen| seen.body))
}

fn dropped(manner: Manner, (what, _): &Asked, answer: &Answer, expected: &str) -> Unmet {
    unmet(manner, &format!("{expected} for {what}"), answer)
}

#[cfg(test)]
mod tests {
    use plugin_sdk::FinishReason::{Length, Stop};

    use super::is_object;

    #[test]
    fn an_object_is_known_though_it_is_cut() {
        for (text, reason) in [
            (" {\"a\": [1]}\n", Stop),
            ("{}", Length),
            (" {\"a\": [", Length),
            (" ", Length),
        ] {
            assert!(is_object(text, reason), "{text}");
        }
        for (text, reason) in [
            ("{\"a\": [", Stop),
            ("42", Stop),
            ("", Stop),
            ("Once", Length),
        ] {
            assert!(!is_object(text, reason), "{text}");
        }
    }
}
