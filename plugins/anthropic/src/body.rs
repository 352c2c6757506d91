//! The body of a request. What the API has no place for is refused.

use plugin_sdk::http::raw_json;
use plugin_sdk::{Error, Prompt, Request};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::messages::{Block, Turn, conversation};
use crate::{invalid, parsed, unsupported};

#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop_sequences: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
}

#[derive(Debug, Serialize)]
struct Tool<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    input_schema: &'a RawValue,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

impl<'a> Body<'a> {
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what the API cannot do,
    /// [`ErrorKind::InvalidRequest`] for what makes no sense; with the parameter.
    pub(crate) fn new(model: &'a str, request: &'a Request) -> Result<Self, Error> {
        let params = &request.params;
        check(request)?;
        let strict = extension(request, "strict_tools")?.unwrap_or_default();
        let strict = strict.as_array().map_or(&[][..], Vec::as_slice);
        let tools = request.tools.iter().map(|tool| self::tool(tool, strict));
        let missing = || invalid("max_tokens", "this model must be told max_tokens");
        let (system, messages) = match &request.prompt {
            Prompt::Text(text) => {
                let content = vec![Block::Text { text }];
                let role = "user";
                (vec![], vec![Turn { role, content }])
            }
            Prompt::Chat(messages) => conversation(messages)?,
        };
        Ok(Self {
            model,
            max_tokens: params.max_tokens.ok_or_else(missing)?,
            system,
            messages,
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: params.top_k,
            stop_sequences: &params.stop,
            tools: tools.collect::<Result<_, _>>()?,
            tool_choice: tool_choice(request)?,
            stream: request.is_streamed(),
        })
    }
}

/// Refuses what would be lost otherwise. A penalty of 0 is none.
fn check(request: &Request) -> Result<(), Error> {
    let params = &request.params;
    let is_penalty = |penalty: Option<f32>| penalty.is_some_and(|penalty| penalty != 0.0);
    for (param, is_given) in [
        ("seed", params.seed.is_some()),
        ("frequency_penalty", is_penalty(params.frequency_penalty)),
        ("presence_penalty", is_penalty(params.presence_penalty)),
        (
            "reasoning_effort",
            request.extension("reasoning_effort").is_some(),
        ),
        ("verbosity", request.extension("verbosity").is_some()),
    ] {
        if is_given {
            return Err(unsupported(param, format!("this model has no {param}")));
        }
    }
    if params
        .temperature
        .is_some_and(|t| !(0.0..=1.0).contains(&t))
    {
        let message = "this model takes a temperature from 0 to 1";
        return Err(invalid("temperature", message));
    }
    if let Some(format) = extension(request, "response_format")?
        && format["type"] != "text"
    {
        let message = "this model answers in text only";
        return Err(unsupported("response_format", message));
    }
    Ok(())
}

/// `strict` are the names of those that must keep to their schema.
fn tool<'a>(tool: &'a plugin_sdk::Tool, strict: &[Value]) -> Result<Tool<'a>, Error> {
    Ok(Tool {
        name: &tool.name,
        description: &tool.description,
        input_schema: raw_json(&tool.parameters, "tools")?,
        strict: strict.iter().any(|name| *name == tool.name),
    })
}

/// OpenAI's `tool_choice` and `parallel_tool_calls` as the one field they are here.
fn tool_choice(request: &Request) -> Result<Option<Value>, Error> {
    let choice = extension(request, "tool_choice")?;
    let parallel = extension(request, "parallel_tool_calls")?;
    let mut choice = match choice {
        None => json!({ "type": "auto" }),
        Some(choice) => match (choice.as_str(), &choice["function"]["name"]) {
            (Some("auto"), _) => json!({ "type": "auto" }),
            (Some("required"), _) => json!({ "type": "any" }),
            (Some("none"), _) => json!({ "type": "none" }),
            (None, Value::String(name)) => json!({ "type": "tool", "name": name }),
            _ => return Err(unsupported("tool_choice", "this model has no such choice")),
        },
    };
    if parallel == Some(Value::Bool(false)) && choice["type"] != "none" {
        choice["disable_parallel_tool_use"] = true.into();
    }
    if request.tools.is_empty() {
        // the API refuses any choice then
        return match choice["type"].as_str() {
            Some("auto" | "none") => Ok(None),
            _ => Err(invalid("tool_choice", "there are no tools to choose from")),
        };
    }
    let is_default = choice == json!({ "type": "auto" });
    Ok((!is_default).then_some(choice))
}

fn extension(request: &Request, name: &str) -> Result<Option<Value>, Error> {
    let json = request.extension(name);
    json.map(|json| parsed(json, name)).transpose()
}

#[cfg(test)]
mod tests {
    use super::Body;
    use plugin_sdk::{Error, ErrorKind, Extension, Params, Prompt, Request, Tool};
    use serde_json::{Value, json};

    fn request() -> Request {
        Request {
            request_id: String::new(),
            model: String::new(),
            prompt: Prompt::Text("hi".to_owned()),
            params: Params {
                max_tokens: Some(5),
                ..Params::default()
            },
            tools: vec![],
            deadline_ms: 1,
            ext: vec![],
        }
    }

    fn extension(name: &str, value: &Value) -> Extension {
        Extension::new(name, value.to_string())
    }

    fn with_tool() -> Request {
        let tool = Tool {
            name: "f".to_owned(),
            description: String::new(),
            parameters: r#"{"type":"object"}"#.to_owned(),
        };
        Request {
            tools: vec![tool],
            ..request()
        }
    }

    fn body(request: &Request) -> Result<Value, Error> {
        let body = Body::new("m", request)?;
        Ok(serde_json::from_slice(&serde_json::to_vec(&body).unwrap()).unwrap())
    }

    #[test]
    fn a_text_is_one_turn_and_parameters_have_their_names() {
        let plain = json!({
            "model": "m",
            "max_tokens": 5,
            "messages": [{ "role": "user", "content": [{ "type": "text", "text": "hi" }] }],
        });
        assert_eq!(body(&request()).unwrap(), plain);

        let mut full = request();
        full.params = Params {
            temperature: Some(0.7),
            top_p: Some(0.5),
            top_k: Some(3),
            stop: vec!["end".to_owned()],
            frequency_penalty: Some(0.0),
            ..full.params
        };
        full.ext.push(extension("stream", &json!(true)));
        full.ext
            .push(extension("response_format", &json!({ "type": "text" })));
        let body = body(&full).unwrap();
        assert_eq!(body["temperature"], 0.7);
        assert_eq!(body["top_p"], 0.5);
        assert_eq!(body["top_k"], 3);
        assert_eq!(body["stop_sequences"], json!(["end"]));
        assert_eq!(body["stream"], true);
        assert_eq!(body.as_object().unwrap().len(), 8);
    }

    #[test]
    fn a_choice_of_tools_is_translated() {
        let one_at_a_time = json!({ "type": "auto", "disable_parallel_tool_use": true });
        let named = json!({ "type": "function", "function": { "name": "f" } });
        for (name, value, expected) in [
            ("tool_choice", json!("auto"), Value::Null),
            ("tool_choice", json!("none"), json!({ "type": "none" })),
            ("tool_choice", json!("required"), json!({ "type": "any" })),
            ("tool_choice", named, json!({ "type": "tool", "name": "f" })),
            ("parallel_tool_calls", json!(true), Value::Null),
            ("parallel_tool_calls", json!(false), one_at_a_time),
        ] {
            let mut request = with_tool();
            request.ext.push(extension(name, &value));
            let body = body(&request).unwrap();
            assert_eq!(body["tool_choice"], expected, "{value}");
            let tools = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
            assert_eq!(body["tools"], tools);
        }
        let mut request = with_tool();
        request
            .ext
            .push(extension("strict_tools", &json!(["e", "f"])));
        assert_eq!(body(&request).unwrap()["tools"][0]["strict"], true);
    }

    #[test]
    fn what_the_api_cannot_do_is_refused() {
        use ErrorKind::{InvalidRequest, Unsupported};
        let with = |params| Request {
            params,
            ..request()
        };
        let params = || request().params;
        let asking = |name, value| Request {
            ext: vec![extension(name, &value)],
            ..request()
        };
        let seed = Some(1);
        let penalty = Some(0.5);
        for (request, kind, param) in [
            (with(Params::default()), InvalidRequest, "max_tokens"),
            (with(Params { seed, ..params() }), Unsupported, "seed"),
            (
                with(Params {
                    frequency_penalty: penalty,
                    ..params()
                }),
                Unsupported,
                "frequency_penalty",
            ),
            (
                with(Params {
                    presence_penalty: penalty,
                    ..params()
                }),
                Unsupported,
                "presence_penalty",
            ),
            (
                with(Params {
                    temperature: Some(1.5),
                    ..params()
                }),
                InvalidRequest,
                "temperature",
            ),
            (
                asking("reasoning_effort", json!("low")),
                Unsupported,
                "reasoning_effort",
            ),
            (asking("verbosity", json!("low")), Unsupported, "verbosity"),
            (
                asking("response_format", json!({ "type": "json_object" })),
                Unsupported,
                "response_format",
            ),
            (
                asking("tool_choice", json!("required")),
                InvalidRequest,
                "tool_choice",
            ),
            (
                asking("tool_choice", json!("maybe")),
                Unsupported,
                "tool_choice",
            ),
        ] {
            let error = body(&request).unwrap_err();
            assert_eq!(error.kind, kind, "{error:?}");
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
    }
}
