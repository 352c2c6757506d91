//! What comes back, whole or as the events of a stream.

use std::collections::BTreeMap;

use plugin_sdk::http::sse::Record;
use plugin_sdk::http::{Decode, unusable, upstream};
use plugin_sdk::{
    CountSource, Error, Event, Finish, FinishReason, Request, ToolCall, Usage, guess_tokens,
};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A message as a whole, or an event of a stream: by its type it has some of
/// these.
#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    message: Option<Message>,
    index: Option<u32>,
    content_block: Option<Block>,
    delta: Option<Delta>,
    usage: Option<Counts>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Vec<Block>>,
    stop_reason: Option<String>,
    usage: Option<Counts>,
}

/// A block of content, of which a stream gives only the beginning.
#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Box<RawValue>>,
}

/// What a block goes on with, or what a message ends with.
#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
    thinking: Option<String>,
    partial_json: Option<String>,
    stop_reason: Option<String>,
}

/// Each is the total so far; one that is not given is as it was.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Counts {
    input_tokens: Option<u32>,
    cache_creation_input_tokens: Option<u32>,
    cache_read_input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

/// Reads the answer to one request.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Guessed, for an answer that does not count.
    prompt_tokens: u32,
    /// Length of what was reported.
    bytes: usize,
    /// Calls that are not whole yet, by the index of their block.
    calls: BTreeMap<u32, ToolCall>,
    reason: FinishReason,
    counts: Counts,
}

impl Decoder {
    /// A decoder for the answer to `request`.
    pub(crate) fn new(request: &Request) -> Self {
        Self {
            prompt_tokens: request.guess_tokens(),
            bytes: 0,
            calls: BTreeMap::new(),
            reason: FinishReason::Other,
            counts: Counts::default(),
        }
    }

    fn text(&mut self, text: Option<String>) -> Option<Event> {
        let text = text.filter(|text| !text.is_empty())?;
        self.bytes += text.len();
        Some(Event::Text(text))
    }

    fn reasoning(&mut self, text: Option<String>) -> Option<Event> {
        let text = text.filter(|text| !text.is_empty())?;
        self.bytes += text.len();
        Some(Event::Reasoning(text))
    }

    /// Takes the beginning of a block. Of kinds that a later version adds, nothing
    /// is of use to the caller.
    fn start(&mut self, index: u32, block: Block) -> Option<Event> {
        match block.kind.as_str() {
            "text" => self.text(block.text),
            "thinking" => self.reasoning(block.thinking),
            "tool_use" => {
                let call = ToolCall {
                    id: block.id.unwrap_or_default(),
                    name: block.name.unwrap_or_default(),
                    arguments: String::new(),
                };
                self.calls.insert(index, call);
                None
            }
            _ => None,
        }
    }

    fn go_on(&mut self, index: u32, delta: Delta) -> Option<Event> {
        if let (Some(json), Some(call)) = (delta.partial_json, self.calls.get_mut(&index)) {
            self.bytes += json.len();
            call.arguments += &json;
        }
        let text = self.text(delta.text);
        text.or_else(|| self.reasoning(delta.thinking))
    }

    /// A call is whole when its block is.
    fn stop(&mut self, index: u32) -> Option<Event> {
        let mut call = self.calls.remove(&index)?;
        if call.arguments.is_empty() {
            call.arguments.push_str("{}");
        }
        Some(Event::ToolCall(call))
    }

    fn ends(&mut self, reason: Option<&str>) {
        self.reason = match reason {
            Some("end_turn" | "stop_sequence") => FinishReason::Stop,
            Some("max_tokens" | "model_context_window_exceeded") => FinishReason::Length,
            Some("tool_use") => FinishReason::ToolCalls,
            Some("refusal") => FinishReason::ContentFilter,
            _ => FinishReason::Other,
        };
    }

    fn counts(&mut self, counts: Option<Counts>) {
        let new = counts.unwrap_or_default();
        let old = self.counts;
        self.counts = Counts {
            input_tokens: new.input_tokens.or(old.input_tokens),
            cache_creation_input_tokens: new
                .cache_creation_input_tokens
                .or(old.cache_creation_input_tokens),
            cache_read_input_tokens: new.cache_read_input_tokens.or(old.cache_read_input_tokens),
            output_tokens: new.output_tokens.or(old.output_tokens),
        };
    }

    /// The API counts what a cache supplied, and what is put there, apart.
    fn finish(&self) -> Event {
        let Counts {
            input_tokens,
            cache_creation_input_tokens,
            cache_read_input_tokens,
            output_tokens,
        } = self.counts;
        let read = cache_read_input_tokens.unwrap_or(0);
        let created = cache_creation_input_tokens.unwrap_or(0);
        let prompt = input_tokens.map(|tokens| tokens.saturating_add(read).saturating_add(created));
        let is_counted = prompt.is_some() && output_tokens.is_some();
        let usage = Usage {
            prompt_tokens: prompt.unwrap_or(self.prompt_tokens),
            completion_tokens: output_tokens.unwrap_or_else(|| guess_tokens(self.bytes)),
            cached_prompt_tokens: read,
            // counted among the others, and not told apart
            reasoning_tokens: 0,
            source: if is_counted {
                CountSource::Exact
            } else {
                CountSource::Estimated
            },
        };
        Event::Finish(Finish {
            reason: self.reason,
            usage,
            ext: vec![],
        })
    }
}

impl Decode for Decoder {
    fn whole(&mut self, body: &[u8]) -> Result<Vec<Event>, Error> {
        let wire: Wire = serde_json::from_slice(body).map_err(unusable)?;
        if let Some(error) = wire.error {
            return Err(upstream::reported(error));
        }
        let message: Message = serde_json::from_slice(body).map_err(unusable)?;
        let blocks = message.content.ok_or_else(|| unusable("no content"))?;
        let mut events = Vec::new();
        for (index, mut block) in (0..).zip(blocks) {
            let input = block.input.take();
            events.extend(self.start(index, block));
            if let (Some(input), Some(call)) = (input, self.calls.get_mut(&index)) {
                call.arguments.push_str(input.get());
            }
            events.extend(self.stop(index));
        }
        self.ends(message.stop_reason.as_deref());
        self.counts(message.usage);
        events.push(self.finish());
        Ok(events)
    }

    fn record(&mut self, record: &Record) -> Result<Vec<Event>, Error> {
        let wire: Wire = serde_json::from_str(&record.data).map_err(unusable)?;
        let index = wire.index.unwrap_or(0);
        let event = match wire.kind.as_str() {
            "message_start" => {
                self.counts(wire.message.and_then(|message| message.usage));
                None
            }
            "content_block_start" => wire
                .content_block
                .and_then(|block| self.start(index, block)),
            "content_block_delta" => wire.delta.and_then(|delta| self.go_on(index, delta)),
            "content_block_stop" => self.stop(index),
            "message_delta" => {
                let reason = wire.delta.and_then(|delta| delta.stop_reason);
                self.ends(reason.as_deref());
                self.counts(wire.usage);
                None
            }
            "message_stop" => Some(self.finish()),
            "error" => return Err(upstream::reported(wire.error.unwrap_or_default())),
            // `ping`, and what a later version adds
            _ => None,
        };
        Ok(event.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Decoder;
    use plugin_sdk::http::{Decode, sse::Record};
    use plugin_sdk::{
        CountSource, Error, ErrorKind, Event, Finish, FinishReason, Prompt, Request, ToolCall,
        Usage,
    };

    fn decoder() -> Decoder {
        Decoder::new(&Request {
            request_id: String::new(),
            model: String::new(),
            prompt: Prompt::Text("1234".to_owned()),
            params: Default::default(),
            tools: vec![],
            deadline_ms: 1,
            ext: vec![],
        })
    }

    fn streamed(events: &[&str]) -> Result<Vec<Event>, Error> {
        let mut decoder = decoder();
        let read = events.iter().map(|data| {
            let data = (*data).to_owned();
            let event = "ignored: the type is in the data".to_owned();
            decoder.record(&Record { event, data })
        });
        Ok(read.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn expected() -> [Event; 4] {
        let usage = Usage {
            prompt_tokens: 3 + 20 + 100,
            completion_tokens: 9,
            cached_prompt_tokens: 100,
            reasoning_tokens: 0,
            source: CountSource::Exact,
        };
        [
            Event::Reasoning("hm".to_owned()),
            Event::Text("I look.".to_owned()),
            Event::ToolCall(ToolCall {
                id: "t1".to_owned(),
                name: "look".to_owned(),
                arguments: r#"{"z":1,"a":2}"#.to_owned(),
            }),
            Event::Finish(Finish {
                reason: FinishReason::ToolCalls,
                usage,
                ext: vec![],
            }),
        ]
    }

    #[test]
    fn a_whole_answer_is_read() {
        let json = br#"{"id":"m1","type":"message","role":"assistant","content":[
            {"type":"thinking","thinking":"hm","signature":"s"},
            {"type":"redacted_thinking","data":"x"},
            {"type":"text","text":"I look."},
            {"type":"tool_use","id":"t1","name":"look","input":{"z":1,"a":2}}
            ],"stop_reason":"tool_use","usage":{"input_tokens":3,"output_tokens":9,
            "cache_creation_input_tokens":20,"cache_read_input_tokens":100}}"#;
        assert_eq!(decoder().whole(json).unwrap(), expected());
    }

    #[test]
    fn a_stream_is_read() {
        let events = streamed(&[
            r#"{"type":"message_start","message":{"type":"message","content":[],"usage":
                {"input_tokens":3,"cache_creation_input_tokens":20,"cache_read_input_tokens":100,
                "output_tokens":1}}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"s"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"I look."}}"#,
            r#"{"type":"content_block_stop","index":1}"#,
            r#"{"type":"content_block_start","index":2,"content_block":
                {"type":"tool_use","id":"t1","name":"look","input":{}}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"z\":1"}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":",\"a\":2}"}}"#,
            r#"{"type":"content_block_stop","index":2}"#,
            r#"{"type":"of_a_later_version","content_block":null}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":9}}"#,
            r#"{"type":"message_stop"}"#,
        ]);
        assert_eq!(events.unwrap(), expected());
    }

    #[test]
    fn what_is_not_counted_is_estimated() {
        let json = br#"{"type":"message","content":[{"type":"tool_use","id":"t","name":"f"}],
            "stop_reason":"end_turn"}"#;
        let events = decoder().whole(json).unwrap();
        let [Event::ToolCall(call), Event::Finish(finish)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(call.arguments, "{}");
        assert_eq!(finish.usage.source, CountSource::Estimated);
        assert_eq!(finish.usage.prompt_tokens, 1);
    }

    #[test]
    fn each_reason_has_its_own() {
        use FinishReason::{ContentFilter, Length, Other, Stop, ToolCalls};
        for (reason, expected) in [
            ("end_turn", Stop),
            ("stop_sequence", Stop),
            ("max_tokens", Length),
            ("tool_use", ToolCalls),
            ("refusal", ContentFilter),
            ("pause_turn", Other),
        ] {
            let json = format!(r#"{{"type":"message","content":[],"stop_reason":"{reason}"}}"#);
            let events = decoder().whole(json.as_bytes()).unwrap();
            assert!(matches!(&events[..], [Event::Finish(finish)] if finish.reason == expected));
        }
    }

    #[test]
    fn errors_and_rubbish_are_told_apart() {
        let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;
        let whole = decoder().whole(overloaded.as_bytes()).unwrap_err();
        assert_eq!(whole.kind, ErrorKind::Overloaded);
        assert_eq!(streamed(&[overloaded]).unwrap_err(), whole);
        for rubbish in ["", "<html>", "[]", "{}", r#"{"type":"message"}"#] {
            let error = decoder().whole(rubbish.as_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Upstream, "{rubbish}");
        }
        assert_eq!(
            streamed(&["rubbish"]).unwrap_err().kind,
            ErrorKind::Upstream
        );
        // the stream ends with message_stop and not before
        let cut = decoder().end().unwrap_err();
        assert_eq!(cut.code.as_deref(), Some("upstream_answer_broken"));
    }
}
