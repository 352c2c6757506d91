//! The messages of a chat.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plugin_sdk::http::raw_json;
use plugin_sdk::{Error, Message, Part, Role};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{invalid, parsed, unsupported};

/// What one side says before the other does.
#[derive(Debug, Serialize)]
pub(crate) struct Turn<'a> {
    pub(crate) role: &'static str,
    pub(crate) content: Vec<Block<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Block<'a> {
    Text {
        text: &'a str,
    },
    Image {
        source: Source<'a>,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: &'a RawValue,
    },
    ToolResult {
        tool_use_id: &'a str,
        content: Vec<Self>,
    },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Source<'a> {
    Base64 { media_type: &'a str, data: String },
    Url { url: String },
}

/// The instructions, which have a place of their own, and the turns. Messages of
/// one side in a row are one turn: so must the results of several tools be.
///
/// # Errors
/// As [`Body::new`](crate::body::Body::new).
pub(crate) fn conversation(messages: &[Message]) -> Result<(Vec<Block<'_>>, Vec<Turn<'_>>), Error> {
    let mut system = Vec::new();
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for message in messages {
        let mut content = blocks(&message.content)?;
        let role = match message.role {
            Role::System
                if content
                    .iter()
                    .all(|block| matches!(block, Block::Text { .. })) =>
            {
                system.extend(content);
                continue;
            }
            Role::System => return Err(unsupported("messages", "instructions must be text")),
            Role::User => "user",
            Role::Assistant => {
                for call in &message.tool_calls {
                    let arguments = match call.arguments.trim() {
                        "" => "{}",
                        arguments => arguments,
                    };
                    content.push(Block::ToolUse {
                        id: &call.id,
                        name: &call.name,
                        input: raw_json(arguments, "messages")?,
                    });
                }
                "assistant"
            }
            Role::Tool => {
                let no_id = || invalid("messages", "a tool's message has no tool_call_id");
                let id = message.tool_call_id.as_deref();
                content = vec![Block::ToolResult {
                    tool_use_id: id.ok_or_else(no_id)?,
                    content,
                }];
                "user"
            }
        };
        // an answer may have been empty, and the API refuses a turn without content
        if content.is_empty() {
            continue;
        }
        match turns.last_mut().filter(|turn| turn.role == role) {
            Some(turn) => turn.content.extend(content),
            None => turns.push(Turn { role, content }),
        }
    }
    Ok((system, turns))
}

fn blocks(parts: &[Part]) -> Result<Vec<Block<'_>>, Error> {
    // the API refuses a text of nothing but space
    let parts = parts
        .iter()
        .filter(|part| !matches!(part, Part::Text(text) if text.trim().is_empty()));
    parts.map(block).collect()
}

fn block(part: &Part) -> Result<Block<'_>, Error> {
    let source = match part {
        Part::Text(text) => return Ok(Block::Text { text }),
        Part::Blob(blob) if blob.media_type.starts_with("image/") => Source::Base64 {
            media_type: &blob.media_type,
            data: STANDARD.encode(&blob.data),
        },
        Part::Other(part) if part.name == "image_url" => {
            let image: Value = parsed(&part.value, "messages")?;
            let url = image["url"].as_str().filter(|url| url.starts_with("http"));
            let no_url = || unsupported("messages", "an image needs an http or https URL");
            Source::Url {
                url: url.ok_or_else(no_url)?.to_owned(),
            }
        }
        Part::Blob(plugin_sdk::Blob {
            media_type: kind, ..
        })
        | Part::Other(plugin_sdk::Extension { name: kind, .. }) => {
            let message = format!("this model takes text and images, not {kind}");
            return Err(unsupported("messages", message));
        }
    };
    Ok(Block::Image { source })
}

#[cfg(test)]
mod tests {
    use super::conversation;
    use plugin_sdk::{Blob, ErrorKind, Extension, Message, Part, Role, ToolCall};
    use serde_json::{Value, json};

    fn message(role: Role, content: Vec<Part>) -> Message {
        Message {
            content,
            ..Message::text(role, "")
        }
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn image_url(value: &str) -> Part {
        Part::Other(Extension::new("image_url", value))
    }

    fn json_of(messages: &[Message]) -> Value {
        let (system, turns) = conversation(messages).unwrap();
        let json = serde_json::to_vec(&(system, turns)).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn instructions_and_turns_find_their_places() {
        let call = |id: &str, arguments: &str| ToolCall {
            id: id.to_owned(),
            name: "f".to_owned(),
            arguments: arguments.to_owned(),
        };
        let result = |id: &str, said: &str| Message {
            tool_call_id: Some(id.to_owned()),
            ..message(Role::Tool, vec![text(said)])
        };
        let image = Part::Blob(Blob {
            media_type: "image/png".to_owned(),
            data: vec![1, 2, 3, 4],
        });
        let url = image_url(r#"{"url":"https://a/b.png","detail":"low"}"#);
        let chat = [
            message(Role::System, vec![text("be kind")]),
            message(Role::User, vec![text("what is this?"), image, url]),
            Message {
                tool_calls: vec![call("c1", "{\"a\":1}"), call("c2", "")],
                ..message(Role::Assistant, vec![text("")])
            },
            result("c1", "4"),
            result("c2", "5"),
            message(Role::User, vec![text("so?")]),
        ];
        let base64 = json!({ "type": "base64", "media_type": "image/png", "data": "AQIDBA==" });
        let url = json!({ "type": "url", "url": "https://a/b.png" });
        let expected = json!([
            [{ "type": "text", "text": "be kind" }],
            [
                { "role": "user", "content": [
                    { "type": "text", "text": "what is this?" },
                    { "type": "image", "source": base64 },
                    { "type": "image", "source": url },
                ] },
                { "role": "assistant", "content": [
                    { "type": "tool_use", "id": "c1", "name": "f", "input": { "a": 1 } },
                    { "type": "tool_use", "id": "c2", "name": "f", "input": {} },
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "c1",
                      "content": [{ "type": "text", "text": "4" }] },
                    { "type": "tool_result", "tool_use_id": "c2",
                      "content": [{ "type": "text", "text": "5" }] },
                    { "type": "text", "text": "so?" },
                ] },
            ],
        ]);
        assert_eq!(json_of(&chat), expected);
    }

    #[test]
    fn messages_that_say_nothing_are_left_out() {
        let chat = [
            message(Role::System, vec![text("")]),
            message(Role::User, vec![text("one")]),
            message(Role::Assistant, vec![text("")]),
            message(Role::User, vec![text("two")]),
            message(Role::Assistant, vec![text(" \n"), text("three")]),
            message(Role::User, vec![]),
        ];
        let said = |text: &str| json!({ "type": "text", "text": text });
        let expected = json!([[], [
            { "role": "user", "content": [said("one"), said("two")] },
            { "role": "assistant", "content": [said("three")] },
        ]]);
        assert_eq!(json_of(&chat), expected);
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        use ErrorKind::{InvalidRequest, Unsupported};
        let audio = Part::Blob(Blob {
            media_type: "audio/wav".to_owned(),
            data: vec![],
        });
        let bad_call = ToolCall {
            id: "c".to_owned(),
            name: "f".to_owned(),
            arguments: "{".to_owned(),
        };
        for (message, kind) in [
            (message(Role::User, vec![audio]), Unsupported),
            (
                message(Role::User, vec![image_url(r#"{"url":"ftp://a"}"#)]),
                Unsupported,
            ),
            (message(Role::User, vec![image_url("{")]), InvalidRequest),
            (
                message(Role::System, vec![image_url(r#"{"url":"https://a"}"#)]),
                Unsupported,
            ),
            (message(Role::Tool, vec![text("4")]), InvalidRequest),
            (
                Message {
                    tool_calls: vec![bad_call],
                    ..message(Role::Assistant, vec![])
                },
                InvalidRequest,
            ),
        ] {
            let error = conversation(&[message]).unwrap_err();
            assert_eq!(error.kind, kind, "{error:?}");
            assert_eq!(error.param.as_deref(), Some("messages"));
        }
    }
}
