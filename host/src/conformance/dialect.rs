//! The formats that the scripted upstream speaks: how a request is known to be in
//! one, and what a good or bad answer in it looks like.

use serde_json::{Value, json};

/// The format of an API that adapters speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's `/v1/completions`.
    Completions,
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// Anthropic's `/v1/messages`.
    Messages,
}

/// What an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Tokens of the prompt, cached ones included.
    pub prompt: u32,
    /// Tokens of the prompt that were cached.
    pub cached: u32,
    /// Tokens of the answer.
    pub completion: u32,
}

/// A streamed answer: whole records of Server-Sent Events.
#[derive(Debug)]
pub struct Records {
    /// All of them.
    pub all: Vec<String>,
    /// How many of them bring the first word.
    pub first_word: usize,
}

impl Dialect {
    /// The format of a request, if it is in one that is known here.
    pub fn of(headers: &[(String, String)], body: &Value) -> Option<Self> {
        let is_versioned = headers.iter().any(|(name, _)| name == "anthropic-version");
        if is_versioned && body["messages"].is_array() {
            Some(Self::Messages)
        } else if body["messages"].is_array() {
            Some(Self::Chat)
        } else if body["prompt"].is_string() {
            Some(Self::Completions)
        } else {
            None
        }
    }

    /// The prompt's text, or that of the last message.
    pub fn prompt(self, body: &Value) -> String {
        let content = match self {
            Self::Completions => &body["prompt"],
            Self::Chat | Self::Messages => match body["messages"].as_array() {
                Some(messages) => messages
                    .last()
                    .map_or(&Value::Null, |last| &last["content"]),
                None => &Value::Null,
            },
        };
        match content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts
                .iter()
                .filter_map(|part| part["text"].as_str())
                .collect(),
            _ => String::new(),
        }
    }

    /// Whether the request asks for at most so many new tokens.
    pub fn asks_for(self, body: &Value, max_tokens: u32) -> bool {
        ["max_tokens", "max_completion_tokens"]
            .iter()
            .any(|field| body[field] == max_tokens)
    }

    /// Whether the request names this stop string.
    pub fn stops_at(self, body: &Value, stop: &str) -> bool {
        let field = match self {
            Self::Completions | Self::Chat => &body["stop"],
            Self::Messages => &body["stop_sequences"],
        };
        field == stop
            || field
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one == stop))
    }

    /// A whole answer.
    pub fn whole(self, text: &str, counts: Option<Counts>) -> String {
        let mut answer = match self {
            Self::Completions => json!({
                "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "conformance",
                "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": "stop" }],
            }),
            Self::Chat => json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "conformance",
                "choices": [{
                    "index": 0, "message": { "role": "assistant", "content": text, "refusal": null },
                    "logprobs": null, "finish_reason": "stop",
                }],
            }),
            Self::Messages => json!({
                "id": "msg_1", "type": "message", "role": "assistant", "model": "conformance",
                "content": [{ "type": "text", "text": text }],
                "stop_reason": "end_turn", "stop_sequence": null,
            }),
        };
        if let Some(counts) = counts {
            answer["usage"] = self.usage(counts);
        }
        answer.to_string()
    }

    /// A streamed answer of these words. As in the real APIs, the one of
    /// OpenAI's counts only for those who ask it to.
    pub fn records(self, words: &[String], counts: Option<Counts>, request: &Value) -> Records {
        let counts = counts.filter(|_| {
            self == Self::Messages || request["stream_options"]["include_usage"] == true
        });
        match self {
            Self::Completions | Self::Chat => self.chunks(words, counts),
            Self::Messages => self.events(words, counts),
        }
    }

    /// A whole answer that is a call of a tool, where the format has them.
    pub fn call(self, name: &str, arguments: &str) -> String {
        let answer = match self {
            Self::Completions => return self.whole("", None),
            Self::Chat => {
                let function = json!({ "name": name, "arguments": arguments });
                let call = json!({ "id": "call_1", "type": "function", "function": function });
                let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
                json!({
                    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "conformance",
                    "choices": [{ "index": 0, "message": message, "finish_reason": "tool_calls" }],
                })
            }
            Self::Messages => {
                let input: Value = serde_json::from_str(arguments).unwrap_or_default();
                let call =
                    json!({ "type": "tool_use", "id": "call_1", "name": name, "input": input });
                json!({
                    "id": "msg_1", "type": "message", "role": "assistant", "model": "conformance",
                    "content": [call], "stop_reason": "tool_use", "stop_sequence": null,
                })
            }
        };
        answer.to_string()
    }

    /// The same streamed, with the arguments in two pieces.
    pub fn call_records(self, name: &str, arguments: &str) -> Vec<String> {
        let half = arguments.floor_char_boundary(arguments.len() / 2);
        let (first, second) = arguments.split_at(half);
        match self {
            Self::Completions => self.chunks(&[], None).all,
            Self::Chat => {
                let piece = |arguments| {
                    let function = json!({ "arguments": arguments });
                    json!({ "tool_calls": [{ "index": 0, "function": function }] })
                };
                let function = json!({ "name": name, "arguments": "" });
                let call =
                    json!({ "index": 0, "id": "call_1", "type": "function", "function": function });
                let begun = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
                let deltas = [(begun, None), (piece(first), None), (piece(second), None)];
                let deltas = deltas.into_iter().chain([(json!({}), Some("tool_calls"))]);
                let record = |(delta, reason): (Value, Option<&str>)| {
                    let choice = json!({ "index": 0, "delta": delta, "finish_reason": reason });
                    let chunk = json!({
                        "id": "1", "object": "chat.completion.chunk", "created": 1,
                        "model": "conformance", "choices": [choice],
                    });
                    format!("data: {chunk}\n\n")
                };
                let end = "data: [DONE]\n\n".to_owned();
                deltas.map(record).chain([end]).collect()
            }
            Self::Messages => {
                let piece = |json| {
                    let delta = json!({ "type": "input_json_delta", "partial_json": json });
                    json!({ "type": "content_block_delta", "index": 0, "delta": delta })
                };
                let message = json!({
                    "id": "msg_1", "type": "message", "role": "assistant", "model": "conformance",
                    "content": [], "stop_reason": null, "stop_sequence": null,
                });
                let call = json!({ "type": "tool_use", "id": "call_1", "name": name, "input": {} });
                let end = json!({ "stop_reason": "tool_use", "stop_sequence": null });
                let events = [
                    json!({ "type": "message_start", "message": message }),
                    json!({ "type": "content_block_start", "index": 0, "content_block": call }),
                    piece(first),
                    piece(second),
                    json!({ "type": "content_block_stop", "index": 0 }),
                    json!({ "type": "message_delta", "delta": end }),
                    json!({ "type": "message_stop" }),
                ];
                events.iter().map(event_record).collect()
            }
        }
    }

    fn chunks(self, words: &[String], counts: Option<Counts>) -> Records {
        let chunk = |choices: Value| {
            let object = match self {
                Self::Completions => "text_completion",
                _ => "chat.completion.chunk",
            };
            json!({ "id": "1", "object": object, "created": 1, "model": "conformance", "choices": choices })
        };
        let choice = |text: Option<&str>, reason: Option<&str>| match self {
            Self::Completions => {
                json!({ "index": 0, "text": text.unwrap_or(""), "logprobs": null, "finish_reason": reason })
            }
            _ => {
                let delta = text.map_or(json!({}), |text| json!({ "content": text }));
                json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason })
            }
        };
        let mut all = Vec::new();
        if self == Self::Chat {
            let delta = json!({ "role": "assistant", "content": "" });
            all.push(chunk(
                json!([{ "index": 0, "delta": delta, "finish_reason": null }]),
            ));
        }
        let first_word = all.len() + 1;
        all.extend(
            words
                .iter()
                .map(|word| chunk(json!([choice(Some(word), None)]))),
        );
        all.push(chunk(json!([choice(None, Some("stop"))])));
        if let Some(counts) = counts {
            let mut last = chunk(json!([]));
            last["usage"] = self.usage(counts);
            all.push(last);
        }
        let mut all: Vec<_> = all
            .iter()
            .map(|chunk| format!("data: {chunk}\n\n"))
            .collect();
        all.push("data: [DONE]\n\n".to_owned());
        Records { all, first_word }
    }

    fn events(self, words: &[String], counts: Option<Counts>) -> Records {
        let mut message = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "conformance", "content": [],
            "stop_reason": null, "stop_sequence": null,
        });
        let mut end = json!({
            "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null },
        });
        if let Some(counts) = counts {
            message["usage"] = self.usage(Counts {
                completion: 1,
                ..counts
            });
            end["usage"] = json!({ "output_tokens": counts.completion });
        }
        let start = json!({ "type": "text", "text": "" });
        let mut all = vec![
            json!({ "type": "message_start", "message": message }),
            json!({ "type": "content_block_start", "index": 0, "content_block": start }),
            json!({ "type": "ping" }),
        ];
        let first_word = all.len() + 1;
        all.extend(words.iter().map(|word| {
            let delta = json!({ "type": "text_delta", "text": word });
            json!({ "type": "content_block_delta", "index": 0, "delta": delta })
        }));
        all.push(json!({ "type": "content_block_stop", "index": 0 }));
        all.push(end);
        all.push(json!({ "type": "message_stop" }));
        Records {
            all: all.iter().map(event_record).collect(),
            first_word,
        }
    }

    /// The body of a refusal.
    pub fn refusal(self, message: &str) -> String {
        let error = match self {
            Self::Completions | Self::Chat => json!({
                "error": { "message": message, "type": "conformance", "param": null, "code": null },
            }),
            Self::Messages => json!({
                "type": "error", "error": { "type": "api_error", "message": message },
            }),
        };
        error.to_string()
    }

    fn usage(self, counts: Counts) -> Value {
        let Counts {
            prompt,
            cached,
            completion,
        } = counts;
        match self {
            Self::Completions | Self::Chat => json!({
                "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                "prompt_tokens_details": { "cached_tokens": cached },
            }),
            Self::Messages => json!({
                "input_tokens": prompt - cached, "output_tokens": completion,
                "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
            }),
        }
    }
}

/// An event of Anthropic's, as a record.
fn event_record(event: &Value) -> String {
    let name = event["type"].as_str().unwrap_or_default();
    format!("event: {name}\ndata: {event}\n\n")
}
