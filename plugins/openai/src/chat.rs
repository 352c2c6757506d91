//! The body of a chat.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openai_format::Options;
use plugin_sdk::http::raw_json;
use plugin_sdk::{Error, ErrorKind, Part, Request, Role};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[derive(Debug, Serialize)]
pub(crate) struct Chat<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    #[serde(flatten)]
    options: Options<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Function<Tool<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verbosity: Option<&'a RawValue>,
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a RawValue>,
    /// By the name that the server has for it.
    #[serde(flatten)]
    reasoning: BTreeMap<&'a str, &'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

/// A text alone is sent as such: servers that know no images know no parts.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Parts(Vec<Piece<'a>>),
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: ImageUrl<'a> },
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ImageUrl<'a> {
    Data {
        url: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a RawValue>,
    },
    Given(&'a RawValue),
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "function")]
struct Function<F> {
    function: F,
}

#[derive(Debug, Serialize)]
struct Tool<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    parameters: &'a RawValue,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

#[derive(Debug, Serialize)]
struct Call<'a> {
    id: &'a str,
    #[serde(flatten)]
    call: Function<Called<'a>>,
}

#[derive(Debug, Serialize)]
struct Called<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> Chat<'a> {
    /// `reasoning_field` takes the reasoning of earlier answers, for a server that wants it back.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a part that is neither text nor image,
    /// [`ErrorKind::InvalidRequest`] for what is no JSON but should be.
    pub(crate) fn new(
        model: &'a str,
        request: &'a Request,
        messages: &'a [plugin_sdk::Message],
        options: Options<'a>,
        reasoning_field: Option<&'a str>,
    ) -> Result<Self, Error> {
        let extension = |name| {
            let value = request.extension(name);
            value.map(|json| raw_json(json, name)).transpose()
        };
        let strict = request.extension("strict_tools");
        let strict: Vec<String> = strict.map_or(Ok(Vec::new()), |json| list(json, "tools"))?;
        let tools = request.tools.iter();
        let tools = tools.map(|tool| self::tool(tool, strict.contains(&tool.name)));
        Ok(Self {
            model,
            messages: messages
                .iter()
                .map(|message| self::message(message, reasoning_field))
                .collect::<Result<_, _>>()?,
            options,
            tools: tools.collect::<Result<_, _>>()?,
            tool_choice: extension("tool_choice")?,
            parallel_tool_calls: extension("parallel_tool_calls")?,
            response_format: extension("response_format")?,
            reasoning_effort: extension("reasoning_effort")?,
            verbosity: extension("verbosity")?,
        })
    }
}

fn message<'a>(
    message: &'a plugin_sdk::Message,
    reasoning_field: Option<&'a str>,
) -> Result<Message<'a>, Error> {
    let extension = |name| {
        let mut found = message.ext.iter().filter(|ext| ext.name == name);
        found.next().map(|ext| ext.value.as_str())
    };
    let details = extension("image_detail");
    let details: Vec<_> = details.map_or(Ok(Vec::new()), |json| list(json, "messages"))?;
    let mut details = details.into_iter();
    let content = match message.content.as_slice() {
        [] if !message.tool_calls.is_empty() => None,
        [] => Some(Content::Text("")),
        [Part::Text(text)] => Some(Content::Text(text)),
        parts => {
            let pieces = parts.iter().map(|part| piece(part, &mut details));
            Some(Content::Parts(pieces.collect::<Result<_, _>>()?))
        }
    };
    let calls = message.tool_calls.iter().map(|call| Call {
        id: &call.id,
        call: Function {
            function: Called {
                name: &call.name,
                arguments: &call.arguments,
            },
        },
    });
    let name = extension("name").map(|name| raw_json(name, "messages"));
    // DeepSeek wants it beside each call, even where there was none
    let reasoning = extension("reasoning").or((!message.tool_calls.is_empty()).then_some("\"\""));
    let reasoning = reasoning_field.zip(reasoning);
    let reasoning = reasoning.map(|(field, said)| Ok((field, raw_json(said, "messages")?)));
    Ok(Message {
        role: match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        },
        content,
        name: name.transpose()?,
        reasoning: reasoning.into_iter().collect::<Result<_, Error>>()?,
        tool_calls: calls.collect(),
        tool_call_id: message.tool_call_id.as_deref(),
    })
}

/// `details` are those of the blobs that are still to come.
fn piece<'a>(
    part: &'a Part,
    details: &mut impl Iterator<Item = Option<&'a RawValue>>,
) -> Result<Piece<'a>, Error> {
    let image_url = match part {
        Part::Text(text) => return Ok(Piece::Text { text }),
        Part::Blob(blob) if blob.media_type.starts_with("image/") => ImageUrl::Data {
            url: format!(
                "data:{};base64,{}",
                blob.media_type,
                STANDARD.encode(&blob.data)
            ),
            detail: details.next().flatten(),
        },
        Part::Other(part) if part.name == "image_url" => {
            ImageUrl::Given(raw_json(&part.value, "messages")?)
        }
        Part::Blob(plugin_sdk::Blob {
            media_type: kind, ..
        })
        | Part::Other(plugin_sdk::Extension { name: kind, .. }) => {
            let message = format!("this model takes text and images, not {kind}");
            return Err(Error::new(ErrorKind::Unsupported, message).param("messages"));
        }
    };
    Ok(Piece::ImageUrl { image_url })
}

fn tool(tool: &plugin_sdk::Tool, strict: bool) -> Result<Function<Tool<'_>>, Error> {
    Ok(Function {
        function: Tool {
            name: &tool.name,
            description: &tool.description,
            parameters: raw_json(&tool.parameters, "tools")?,
            strict,
        },
    })
}

/// The items of an extension that is a list.
fn list<'a, T: Deserialize<'a>>(json: &'a str, param: &str) -> Result<Vec<T>, Error> {
    serde_json::from_str(json).map_err(|error| {
        let message = format!("an extension of {param} makes no sense: {error}");
        Error::new(ErrorKind::InvalidRequest, message).param(param)
    })
}

#[cfg(test)]
mod tests {
    use super::{Chat, Options};
    use plugin_sdk::{
        Blob, Error, ErrorKind, Extension, Message, Params, Part, Prompt, Request, Role, Tool,
        ToolCall,
    };
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

    fn extension(name: &str, value: &str) -> Extension {
        Extension::new(name, value)
    }

    fn request(messages: Vec<Message>) -> Request {
        Request {
            request_id: String::new(),
            model: String::new(),
            prompt: Prompt::Chat(messages),
            params: Params {
                max_tokens: Some(5),
                ..Params::default()
            },
            tools: vec![],
            deadline_ms: 1,
            ext: vec![],
        }
    }

    fn body(request: &Request) -> Result<Value, Error> {
        let Prompt::Chat(messages) = &request.prompt else {
            panic!("a chat");
        };
        let chat = Chat::new("m", request, messages, Options::new(request), None)?;
        Ok(serde_json::to_value(&chat).unwrap())
    }

    #[test]
    fn every_kind_of_message_is_sent() {
        let call = ToolCall {
            id: "c1".to_owned(),
            name: "f".to_owned(),
            arguments: "{\"a\": 1}".to_owned(),
        };
        let image = Blob {
            media_type: "image/png".to_owned(),
            data: vec![1, 2, 3, 4],
        };
        let url = extension("image_url", r#"{"url":"https://a/b.png","detail":"low"}"#);
        let request = request(vec![
            message(Role::System, vec![text("be kind")]),
            Message {
                ext: vec![
                    extension("name", "\"ann\""),
                    extension("image_detail", r#"[null,"high"]"#),
                ],
                ..message(
                    Role::User,
                    vec![
                        text("what is this?"),
                        Part::Blob(image.clone()),
                        Part::Other(url),
                        Part::Blob(image),
                    ],
                )
            },
            Message {
                tool_calls: vec![call],
                ..message(Role::Assistant, vec![])
            },
            Message {
                tool_call_id: Some("c1".to_owned()),
                ..message(Role::Tool, vec![text("4")])
            },
        ]);
        let expected = json!({
            "model": "m",
            "messages": [
                { "role": "system", "content": "be kind" },
                { "role": "user", "name": "ann", "content": [
                    { "type": "text", "text": "what is this?" },
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,AQIDBA==" } },
                    { "type": "image_url", "image_url": { "url": "https://a/b.png", "detail": "low" } },
                    { "type": "image_url",
                      "image_url": { "url": "data:image/png;base64,AQIDBA==", "detail": "high" } },
                ] },
                { "role": "assistant", "content": null, "tool_calls": [
                    { "id": "c1", "type": "function",
                      "function": { "name": "f", "arguments": "{\"a\": 1}" } },
                ] },
                { "role": "tool", "content": "4", "tool_call_id": "c1" },
            ],
            "max_tokens": 5,
        });
        assert_eq!(body(&request).unwrap(), expected);
    }

    #[test]
    fn tools_and_extensions_are_passed_on_as_they_are() {
        let mut request = request(vec![message(Role::User, vec![text("hi")])]);
        request.tools.push(Tool {
            name: "f".to_owned(),
            description: "does".to_owned(),
            parameters: r#"{"z":1.50,"a":{}}"#.to_owned(),
        });
        let given = [
            (
                "tool_choice",
                r#"{"type":"function","function":{"name":"f"}}"#,
            ),
            ("parallel_tool_calls", "false"),
            ("response_format", r#"{"type":"json_object"}"#),
            ("reasoning_effort", "\"low\""),
            ("verbosity", "\"low\""),
            ("strict_tools", r#"["f"]"#),
            ("x-unknown", "1"),
        ];
        let extensions = given.iter().map(|(name, value)| extension(name, value));
        request.ext = extensions.collect();
        let Prompt::Chat(messages) = &request.prompt else {
            panic!("a chat");
        };
        let chat = Chat::new("m", &request, messages, Options::new(&request), None).unwrap();
        let json = serde_json::to_string(&chat).unwrap();
        // the order of a schema's properties matters to a model
        let parameters = r#""parameters":{"z":1.50,"a":{}},"strict":true"#;
        assert!(json.contains(parameters), "{json}");
        for (name, value) in &given[..5] {
            assert!(
                json.contains(&format!(r#""{name}":{value}"#)),
                "{name}: {json}"
            );
        }
        assert!(!json.contains("x-unknown") && !json.contains("strict_tools"));
    }

    #[test]
    fn reasoning_goes_back_to_a_server_that_wants_it() {
        let call = ToolCall {
            id: "c1".to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        };
        let reasoned = Message {
            tool_calls: vec![call.clone()],
            ext: vec![extension("reasoning", "\"hm\"")],
            ..message(Role::Assistant, vec![])
        };
        let called = Message {
            tool_calls: vec![call],
            ..message(Role::Assistant, vec![])
        };
        let asked = message(Role::User, vec![text("hi")]);
        let request = request(vec![asked, reasoned, called]);
        let Prompt::Chat(messages) = &request.prompt else {
            panic!("a chat");
        };
        for (field, expected) in [
            (Some("reasoning_content"), [None, Some("hm"), Some("")]),
            (None, [None; 3]),
        ] {
            let chat = Chat::new("m", &request, messages, Options::new(&request), field).unwrap();
            let chat = serde_json::to_value(&chat).unwrap();
            for (at, expected) in expected.into_iter().enumerate() {
                let said = chat["messages"][at]["reasoning_content"].as_str();
                assert_eq!(said, expected, "{at}");
            }
            assert!(!chat.to_string().contains("\"reasoning\""), "{chat}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let audio = Part::Blob(Blob {
            media_type: "audio/wav".to_owned(),
            data: vec![],
        });
        for part in [audio, Part::Other(extension("x-smell", "{}"))] {
            let error = body(&request(vec![message(Role::User, vec![part])])).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            assert_eq!(error.param.as_deref(), Some("messages"));
        }
        let mut request = request(vec![]);
        request.ext.push(extension("response_format", "{"));
        let error = body(&request).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert_eq!(error.param.as_deref(), Some("response_format"));
    }
}
