//! The formats: what is asked, and an answer in each way in which it may come.

use plugin_sdk::{
    CountSource, Event, Extension, Finish, FinishReason, Message, Params, Prompt, Request, Role,
    ToolCall, Usage,
};

use super::super::{runtime, spec};
use super::api::Api;
use crate::models::component::{Component, Spec};

/// An answer in one of the formats, said in two ways.
pub(super) struct Format {
    pub(super) plugin: &'static str,
    /// Below `/v1`; of lawgent-thinking a part of its `api_url`.
    pub(super) path: &'static str,
    is_chat: bool,
    pub(super) whole: &'static str,
    pub(super) stream: &'static str,
    /// Both as events.
    pub(super) events: Vec<Event>,
    /// A record that reports an error in the midst of a stream.
    pub(super) error: &'static str,
}

const TEXT_WHOLE: &str = r#"{"choices":[{"text":"Crabs: 🦀é","finish_reason":"length"}],
    "usage":{"prompt_tokens":3,"completion_tokens":8}}"#;
const TEXT_STREAM: &str = "data: {\"choices\":[{\"text\":\"Crabs: \"}]}\r\n\r\n: alive\r\n\r\n\
    data: {\"choices\":[{\"text\":\"🦀é\",\"finish_reason\":\"length\"}]}\r\n\r\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":8}}\r\n\r\n\
    data: [DONE]\r\n\r\n";
const OPENAI_ERROR: &str = "data: {\"error\":{\"message\":\"busy\",\"code\":503}}\n\n";

const CHAT_WHOLE: &str = r#"{"choices":[{"message":{"role":"assistant","reasoning_content":"Hm.",
    "content":"Crabs: 🦀é","tool_calls":[{"id":"t1","type":"function","function":
    {"name":"look","arguments":"{\"at\":\"é\"}"}}]},"finish_reason":"tool_calls"}],
    "usage":{"prompt_tokens":110,"completion_tokens":8,
    "prompt_tokens_details":{"cached_tokens":100},
    "completion_tokens_details":{"reasoning_tokens":2}}}"#;
const CHAT_STREAM: &str = r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}

data: {"choices":[{"delta":{"reasoning_content":"Hm."}}]}

data: {"choices":[{"delta":{"content":"Crabs: "}}]}

data: {"choices":[{"delta":{"content":"🦀é"}}]}

data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"t1","function":{"name":"look","arguments":"{\"at\""}}]}}]}

data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":\"é\"}"}}]}}]}

data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}],"usage":null}

data: {"choices":[],"usage":{"prompt_tokens":110,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":100},"completion_tokens_details":{"reasoning_tokens":2}}}

data: [DONE]

"#;

const MESSAGES_WHOLE: &str = r#"{"type":"message","content":[
    {"type":"thinking","thinking":"Hm.","signature":"s"},{"type":"text","text":"Crabs: 🦀é"},
    {"type":"tool_use","id":"t1","name":"look","input":{"at":"é"}}],"stop_reason":"tool_use",
    "usage":{"input_tokens":7,"cache_read_input_tokens":100,"cache_creation_input_tokens":3,
    "output_tokens":8}}"#;
const MESSAGES_STREAM: &str = r#"event: message_start
data: {"type":"message_start","message":{"usage":{"input_tokens":7,"cache_read_input_tokens":100,"cache_creation_input_tokens":3,"output_tokens":1}}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm."}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Crabs: "}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"🦀é"}}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t1","name":"look","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"at\":"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"\"é\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":8}}

event: message_stop
data: {"type":"message_stop"}

"#;
const MESSAGES_ERROR: &str =
    "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";

fn finish(reason: FinishReason, prompt: u32, cached: u32, reasoning: u32) -> Event {
    let usage = Usage {
        prompt_tokens: prompt,
        completion_tokens: 8,
        cached_prompt_tokens: cached,
        reasoning_tokens: reasoning,
        source: CountSource::Exact,
    };
    Event::Finish(Finish {
        reason,
        usage,
        ext: vec![],
    })
}

pub(super) fn formats() -> [Format; 4] {
    let text = || Event::Text("Crabs: 🦀é".to_owned());
    let chat = |reasoning| {
        let call = ToolCall {
            id: "t1".to_owned(),
            name: "look".to_owned(),
            arguments: "{\"at\":\"é\"}".to_owned(),
        };
        vec![
            Event::Reasoning("Hm.".to_owned()),
            text(),
            Event::ToolCall(call),
            finish(FinishReason::ToolCalls, 110, 100, reasoning),
        ]
    };
    let completion = |plugin| Format {
        plugin,
        path: "/completions",
        is_chat: false,
        whole: TEXT_WHOLE,
        stream: TEXT_STREAM,
        events: vec![text(), finish(FinishReason::Length, 3, 0, 0)],
        error: OPENAI_ERROR,
    };
    let openai = Format {
        path: "/chat/completions",
        is_chat: true,
        whole: CHAT_WHOLE,
        stream: CHAT_STREAM,
        events: chat(2),
        ..completion("openai")
    };
    let anthropic = Format {
        plugin: "anthropic",
        path: "/messages",
        is_chat: true,
        whole: MESSAGES_WHOLE,
        stream: MESSAGES_STREAM,
        events: chat(0),
        error: MESSAGES_ERROR,
    };
    [
        completion("lawgent-thinking"),
        completion("openai"),
        openai,
        anthropic,
    ]
}

impl Format {
    pub(super) async fn open(&self, api: &Api, more: &[(&str, &str)]) -> Component {
        let url = match self.plugin {
            "lawgent-thinking" => format!("{}{}", api.url, self.path),
            _ => api.url.clone(),
        };
        let own = [("model_name", "thinker"), ("api_url", url.as_str())];
        let settings = own.iter().chain(more);
        let spec = Spec {
            settings: settings
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ..spec(self.plugin, Some(&url))
        };
        Component::open(&runtime(), spec).await.unwrap()
    }

    pub(super) fn request(&self, is_streamed: bool) -> Request {
        let chat = || vec![Message::text(Role::User, "Say crabs")];
        Request {
            request_id: "r-1".to_owned(),
            model: "thinker".to_owned(),
            prompt: if self.is_chat {
                Prompt::Chat(chat())
            } else {
                Prompt::Text("Say crabs".to_owned())
            },
            params: Params {
                max_tokens: Some(8),
                ..Params::default()
            },
            tools: vec![],
            deadline_ms: 20_000,
            ext: vec![Extension::new("stream", is_streamed.to_string())],
        }
    }

    /// The stream, cut behind the record in which the text begins.
    pub(super) fn cut_behind_the_first_text(&self) -> (&[u8], &[u8]) {
        let text = self.stream.find("Crabs").unwrap();
        let end = self.stream[text..].find("}\n\n").map(|end| text + end + 3);
        let end = end
            .or_else(|| Some(self.stream.find("}\r\n\r\n")? + 5))
            .unwrap();
        self.stream.as_bytes().split_at(end)
    }
}
