//! What comes back, whole or in chunks. Texts and chats differ only in where the
//! text lies, so one decoder reads both.

use plugin_sdk::http::sse::Record;
use plugin_sdk::http::{Decode, unusable, upstream};
use plugin_sdk::{CountSource, Error, Event, Finish, FinishReason, Request, Usage, guess_tokens};

use crate::calls::Calls;
use crate::wire::{Choice, Content, Message, Part, Wire, counted};

/// Reads the answer to one request.
#[derive(Debug)]
pub struct Decoder {
    /// Guessed, for an answer that does not count.
    prompt_tokens: u32,
    /// Length of what was reported.
    bytes: usize,
    reasoning_bytes: usize,
    calls: Calls,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Decoder {
    /// A decoder for the answer to `request`.
    pub fn new(request: &Request) -> Self {
        Self {
            prompt_tokens: request.guess_tokens(),
            bytes: 0,
            reasoning_bytes: 0,
            calls: Calls::default(),
            reason: None,
            usage: None,
        }
    }

    /// Takes a text that continues another, or a message, and why it ended.
    fn choice(
        &mut self,
        text: Option<String>,
        message: Option<Message>,
        reason: Option<String>,
    ) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        events.extend(text.and_then(|text| self.text(text)));
        if let Some(message) = message {
            let reasoning = message.reasoning_content.or(message.reasoning);
            events.extend(reasoning.and_then(|text| self.reasoning(text)));
            if let Some(content) = message.content {
                self.content(content, Self::text, &mut events);
            }
            // a refusal is what the model says, too
            events.extend(message.refusal.and_then(|text| self.text(text)));
            for fragment in message.tool_calls.unwrap_or_default() {
                self.bytes += self.calls.add(fragment);
            }
        }
        // some servers have an empty one until there is a reason
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            self.reason = Some(match reason.as_str() {
                "stop" => FinishReason::Stop,
                // the second is Mistral's
                "length" | "model_length" => FinishReason::Length,
                // the second is Z.ai's
                "content_filter" | "sensitive" => FinishReason::ContentFilter,
                "tool_calls" => FinishReason::ToolCalls,
                // of Mistral and OpenRouter, Z.ai, DeepSeek: the answer is not whole
                "error" | "network_error" | "insufficient_system_resource" => {
                    let said = format!("it ended by {reason}");
                    return Err(upstream::reported(said.into()));
                }
                _ => FinishReason::Other,
            });
        }
        Ok(events)
    }

    fn text(&mut self, text: String) -> Option<Event> {
        self.bytes += text.len();
        (!text.is_empty()).then_some(Event::Text(text))
    }

    fn reasoning(&mut self, text: String) -> Option<Event> {
        self.bytes += text.len();
        self.reasoning_bytes += text.len();
        (!text.is_empty()).then_some(Event::Reasoning(text))
    }

    /// The texts of some content in their order, each of which `event` takes unless
    /// its part says otherwise.
    fn content(
        &mut self,
        content: Content,
        event: fn(&mut Self, String) -> Option<Event>,
        events: &mut Vec<Event>,
    ) {
        match content {
            Content::Text(text) => events.extend(event(self, text)),
            Content::Parts(parts) => {
                for part in parts {
                    match part {
                        Part::Text { text } => events.extend(event(self, text)),
                        Part::Thinking { thinking } => {
                            self.content(thinking, Self::reasoning, events);
                        }
                        Part::Other => {}
                    }
                }
            }
        }
    }

    /// What ends an answer: its calls, which are whole only now, and its totals.
    fn finish(&mut self) -> Result<Vec<Event>, Error> {
        let calls = self.calls.whole();
        let calls = calls.ok_or_else(|| unusable("a call of a tool without a name"))?;
        let usage = self.usage.unwrap_or_else(|| Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: guess_tokens(self.bytes),
            cached_prompt_tokens: 0,
            reasoning_tokens: guess_tokens(self.reasoning_bytes),
            source: CountSource::Estimated,
        });
        let finish = Event::Finish(Finish {
            reason: self.reason.unwrap_or(FinishReason::Other),
            usage,
            ext: vec![],
        });
        let calls = calls.into_iter().map(Event::ToolCall);
        Ok(calls.chain([finish]).collect())
    }
}

impl Decode for Decoder {
    fn whole(&mut self, body: &[u8]) -> Result<Vec<Event>, Error> {
        let wire = parsed(body)?;
        self.usage = wire.usage.as_ref().and_then(counted);
        let choice = wire.choices.unwrap_or_default().into_iter().next();
        let choice = good(choice.ok_or_else(|| unusable("no choices"))?)?;
        let message = choice.message.or(choice.delta);
        if choice.text.is_none() && message.is_none() {
            return Err(unusable("no message"));
        }
        let mut events = self.choice(choice.text, message, choice.finish_reason)?;
        events.extend(self.finish()?);
        Ok(events)
    }

    fn record(&mut self, record: &Record) -> Result<Vec<Event>, Error> {
        if record.data.trim() == "[DONE]" {
            return self.finish();
        }
        let wire = parsed(record.data.as_bytes())?;
        let mut events = Vec::new();
        let choice = wire.choices.unwrap_or_default().into_iter().next();
        let is_on_the_way = choice.is_some();
        if let Some(choice) = choice {
            let choice = good(choice)?;
            let message = choice.delta.or(choice.message);
            events.extend(self.choice(choice.text, message, choice.finish_reason)?);
        }
        if let Some(usage) = wire.usage.as_ref().and_then(counted) {
            self.usage = Some(usage);
            // the totals come once more at the end; some servers count all along
            if is_on_the_way && self.reason.is_none() {
                events.push(Event::Usage(usage));
            }
        }
        Ok(events)
    }

    fn end(&mut self) -> Result<Vec<Event>, Error> {
        if self.reason.is_none() {
            return Err(unusable("it ended before the end of the answer"));
        }
        // a server that leaves out the record after the last
        self.finish()
    }
}

fn parsed(json: &[u8]) -> Result<Wire, Error> {
    let wire: Wire = serde_json::from_slice(json).map_err(unusable)?;
    match wire.error {
        Some(error) => Err(upstream::reported(error)),
        None => Ok(wire),
    }
}

/// OpenRouter reports here what befell one of its providers.
fn good(choice: Choice) -> Result<Choice, Error> {
    match choice.error {
        Some(error) => Err(upstream::reported(error)),
        None => Ok(choice),
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

    fn text(text: &str) -> Event {
        Event::Text(text.to_owned())
    }

    fn finish(reason: FinishReason, prompt: u32, completion: u32, reasoning: u32) -> Event {
        let usage = Usage {
            prompt_tokens: prompt,
            completion_tokens: completion,
            reasoning_tokens: reasoning,
            source: CountSource::Exact,
            ..Usage::default()
        };
        Event::Finish(Finish {
            reason,
            usage,
            ext: vec![],
        })
    }

    fn call(id: &str, name: &str, arguments: &str) -> Event {
        Event::ToolCall(ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        })
    }

    fn streamed(chunks: &[&str]) -> Result<Vec<Event>, Error> {
        let mut decoder = decoder();
        let mut events = Vec::new();
        for data in chunks {
            events.extend(decoder.record(&Record {
                event: "message".to_owned(),
                data: (*data).to_owned(),
            })?);
        }
        Ok(events)
    }

    const USAGE: &str = r#""usage":{"prompt_tokens":3,"completion_tokens":2,
        "completion_tokens_details":{"reasoning_tokens":1}}"#;

    #[test]
    fn a_whole_answer_is_read() {
        let json = format!(r#"{{"choices":[{{"text":" you","finish_reason":"length"}}],{USAGE}}}"#);
        let events = decoder().whole(json.as_bytes()).unwrap();
        assert_eq!(
            events,
            [text(" you"), finish(FinishReason::Length, 3, 2, 1)]
        );

        let json = format!(
            r#"{{"choices":[{{"message":{{"content":null,"reasoning":"hm","tool_calls":[
                {{"id":"a","type":"function","function":{{"name":"f","arguments":"{{}}"}}}},
                {{"id":"b","type":"function","function":{{"name":"g","arguments":"1"}}}}
            ]}},"finish_reason":"tool_calls"}}],{USAGE}}}"#
        );
        let events = decoder().whole(json.as_bytes()).unwrap();
        let expected = [
            Event::Reasoning("hm".to_owned()),
            call("a", "f", "{}"),
            call("b", "g", "1"),
            finish(FinishReason::ToolCalls, 3, 2, 1),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn chunks_become_events() {
        let usage = format!(r#"{{"choices":[],{USAGE}}}"#);
        let events = streamed(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm","reasoning":"hm"}}],"usage":null}"#,
            r#"{"choices":[{"delta":{"content":"yes"}}]}"#,
            r#"{"choices":[{"text":" you"}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            &usage,
            "[DONE]",
        ]);
        let expected = [
            Event::Reasoning("hm".to_owned()),
            text("yes"),
            text(" you"),
            finish(FinishReason::Stop, 3, 2, 1),
        ];
        assert_eq!(events.unwrap(), expected);
    }

    #[test]
    fn a_message_beside_a_delta_is_not_said_twice() {
        let json = r#"{"choices":[{"delta":{"role":"assistant","content":""},
            "message":{"content":"yes, it is"},"finish_reason":"stop"}]}"#;
        assert_eq!(
            decoder().whole(json.as_bytes()).unwrap()[0],
            text("yes, it is")
        );
        let events = streamed(&[
            r#"{"choices":[{"delta":{"content":"yes"},"message":{"content":"yes"}}]}"#,
            r#"{"choices":[{"delta":{"content":", it is"},"message":{"content":"yes, it is"}}]}"#,
        ]);
        assert_eq!(events.unwrap(), [text("yes"), text(", it is")]);
    }

    #[test]
    fn content_may_come_in_parts() {
        let parts = r#"{"content":[
            {"type":"thinking","thinking":[{"type":"text","text":"hm"}],"closed":true},
            {"type":"reference","reference_ids":[1]},
            {"type":"text","text":"yes"}]}"#;
        let expected = [Event::Reasoning("hm".to_owned()), text("yes")];
        let whole = format!(r#"{{"choices":[{{"message":{parts}}}]}}"#);
        let events = decoder().whole(whole.as_bytes()).unwrap();
        assert_eq!(events[..2], expected);
        let chunk = format!(r#"{{"choices":[{{"delta":{parts}}}]}}"#);
        assert_eq!(streamed(&[&chunk]).unwrap(), expected);
    }

    #[test]
    fn calls_are_put_together_by_their_index() {
        let delta =
            |calls: &str| format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{calls}]}}}}]}}"#);
        let indexed = [
            delta(r#"{"index":0,"id":"a","function":{"name":"f","arguments":""}}"#),
            delta(r#"{"index":1,"id":"b","function":{"name":"g","arguments":"{\"y\""}}"#),
            delta(
                r#"{"index":0,"function":{"arguments":"{}"}},{"index":1,"function":{"arguments":":1}"}}"#,
            ),
        ];
        let by_order = [
            delta(r#"{"id":"a","function":{"name":"f"}}"#),
            delta(r#"{"function":{"arguments":"{}"}}"#),
            delta(r#"{"id":"b","function":{"name":"g","arguments":"{\"y\":1}"}}"#),
        ];
        let whole_at_one_index = [
            delta(r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}"#),
            delta(r#"{"index":0,"id":"b","function":{"name":"g","arguments":"{\"y\""}}"#),
            delta(r#"{"index":0,"function":{"arguments":":1}"}}"#),
        ];
        let each_piece_with_an_id = [
            delta(r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}"#),
            delta(r#"{"index":1,"id":"x","function":{"name":"g","arguments":"{\"y\""}}"#),
            delta(r#"{"index":1,"id":"b","function":{"arguments":":1}"}}"#),
        ];
        for chunks in [indexed, by_order, whole_at_one_index, each_piece_with_an_id] {
            let chunks: Vec<&str> = chunks
                .iter()
                .map(String::as_str)
                .chain(["[DONE]"])
                .collect();
            let events = streamed(&chunks).unwrap();
            assert_eq!(
                events[..2],
                [call("a", "f", "{}"), call("b", "g", r#"{"y":1}"#)]
            );
            assert!(matches!(events[2..], [Event::Finish(_)]));
        }
        let nameless = delta(r#"{"index":0,"function":{"arguments":"{}"}}"#);
        let error = streamed(&[&nameless, "[DONE]"]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream);
    }

    #[test]
    fn missing_usage_is_estimated() {
        for usage in ["", r#","usage":null"#, r#","usage":{"prompt_tokens":-1}"#] {
            let json = format!(r#"{{"choices":[{{"text":"12345"}}]{usage}}}"#);
            let events = decoder().whole(json.as_bytes()).unwrap();
            let Some(Event::Finish(finish)) = events.last() else {
                panic!("{events:?}");
            };
            assert_eq!(finish.usage.source, CountSource::Estimated);
            assert_eq!(
                (finish.usage.prompt_tokens, finish.usage.completion_tokens),
                (1, 2)
            );
            assert_eq!(finish.reason, FinishReason::Other);
        }
    }

    #[test]
    fn reasons_by_other_names_are_known() {
        for (name, reason) in [
            ("model_length", FinishReason::Length),
            ("sensitive", FinishReason::ContentFilter),
            ("", FinishReason::Other),
        ] {
            let json = format!(r#"{{"choices":[{{"text":"a","finish_reason":"{name}"}}]}}"#);
            let events = decoder().whole(json.as_bytes()).unwrap();
            assert!(
                matches!(&events[..], [_, Event::Finish(finish)] if finish.reason == reason),
                "{events:?}"
            );
        }
    }

    #[test]
    fn counts_on_the_way_are_passed_on() {
        let chunk = format!(r#"{{"choices":[{{"text":"a"}}],{USAGE}}}"#);
        let events = streamed(&[&chunk]).unwrap();
        assert!(
            matches!(events[..], [Event::Text(_), Event::Usage(usage)] if usage.prompt_tokens == 3)
        );
    }

    #[test]
    fn an_answer_that_stops_without_its_end_is_an_error() {
        let mut cut = decoder();
        let mut record = |data: &str| {
            let data = data.to_owned();
            let event = "message".to_owned();
            cut.record(&Record { event, data }).unwrap();
            cut.end()
        };
        let error = record(r#"{"choices":[{"text":"a"}]}"#).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream);
        let error = record(r#"{"choices":[{"text":"a","finish_reason":""}]}"#).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Upstream);
        // but the end itself may go unmarked
        let events = record(r#"{"choices":[{"text":"b","finish_reason":"stop"}]}"#).unwrap();
        assert!(matches!(events[..], [Event::Finish(_)]));
    }

    #[test]
    fn rubbish_is_the_upstreams_fault() {
        for json in [
            "",
            "<html>",
            "[]",
            "{}",
            r#"{"choices":[]}"#,
            r#"{"choices":[{}]}"#,
            r#"{"choices":[{"text":1}]}"#,
            r#"{"error":{"message":"it broke"}}"#,
            r#"{"choices":[{"text":"a","finish_reason":"error"}]}"#,
            r#"{"choices":[{"text":"a","finish_reason":"network_error"}]}"#,
            r#"{"choices":[{"text":"a","finish_reason":"insufficient_system_resource"}]}"#,
            r#"{"choices":[{"text":"a","error":{"code":502,"message":"it broke"}}]}"#,
        ] {
            let error = decoder().whole(json.as_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Upstream, "{json}");
        }
        assert_eq!(
            streamed(&["rubbish"]).unwrap_err().kind,
            ErrorKind::Upstream
        );
        for error in [
            r#"{"error":{"code":429,"message":"slow down"}}"#,
            r#"{"choices":[{"text":"","error":{"code":429,"message":"slow down"}}]}"#,
        ] {
            assert_eq!(streamed(&[error]).unwrap_err().kind, ErrorKind::RateLimited);
        }
    }
}
