//! What a plugin cannot do, refused in one call.

use crate::{Error, ErrorKind, Message, Part, Prompt, Request, Role};

impl Request {
    /// Refuses what this asks for and `able` does not name: what a model cannot do must not
    /// be dropped in silence. There are
    ///
    /// - of features, `tools` and `vision`
    /// - of parameters, all but `max_tokens`, which the host always sets
    /// - the well-known extensions that change an answer
    /// - unknown parts of a message, by their media type or name
    ///
    /// What makes no difference, such as a penalty of 0, `top_p` of 1 or `response_format` of
    /// text, is not asked for. The kind of prompt is for the plugin to look at.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] with the field's name.
    pub fn refuse_all_but(&self, able: &[&str]) -> Result<(), Error> {
        let params = &self.params;
        let is_penalty = |penalty: Option<f32>| penalty.is_some_and(|penalty| penalty != 0.0);
        // what the host makes is compact, but that is not promised
        let compact = |text: &str| text.split_ascii_whitespace().collect::<String>();
        let is_other = |name, same: &[&str]| {
            let value = self.extension(name).map(compact);
            value.is_some_and(|value| !same.contains(&&*value))
        };
        let has_tools = !self.tools.is_empty();
        // a model that may call its tools does not obey "none"
        let same_choices = match has_tools {
            true => &["\"auto\""][..],
            false => &["\"auto\"", "\"none\""],
        };
        let of_params = [
            ("temperature", params.temperature.is_some()),
            ("top_p", params.top_p.is_some_and(|top_p| top_p < 1.0)),
            ("top_k", params.top_k.is_some()),
            ("seed", params.seed.is_some()),
            ("frequency_penalty", is_penalty(params.frequency_penalty)),
            ("presence_penalty", is_penalty(params.presence_penalty)),
            ("stop", !params.stop.is_empty()),
            ("tools", has_tools),
            ("tool_choice", is_other("tool_choice", same_choices)),
            (
                "parallel_tool_calls",
                has_tools && is_other("parallel_tool_calls", &["true"]),
            ),
            (
                "strict_tools",
                has_tools && is_other("strict_tools", &["[]"]),
            ),
            (
                "response_format",
                is_other("response_format", &[r#"{"type":"text"}"#]),
            ),
            ("reasoning_effort", is_other("reasoning_effort", &[])),
            ("verbosity", is_other("verbosity", &[])),
        ];
        let asked = of_params.into_iter().filter(|(_, is_asked)| *is_asked);
        let asked = asked.map(|(name, _)| (name, name));
        let messages = match &self.prompt {
            Prompt::Text(_) => &[][..],
            Prompt::Chat(messages) => messages,
        };
        let of_messages = messages.iter().flat_map(needs);
        let of_messages = of_messages.map(|name| (name, "messages"));
        match asked
            .chain(of_messages)
            .find(|(name, _)| !able.contains(name))
        {
            None => Ok(()),
            Some((name, param)) => {
                // both what a caller sent and the name that `able` would have
                let what = match name {
                    "vision" => "images (vision)",
                    name => name,
                };
                let message = format!("this model takes no {what}");
                Err(Error::new(ErrorKind::Unsupported, message).param(param))
            }
        }
    }
}

/// What a model must be able to do to read this, by the names above.
fn needs(message: &Message) -> impl Iterator<Item = &str> {
    let is_of_tools = message.role == Role::Tool || !message.tool_calls.is_empty();
    let of_part = |part| match part {
        &Part::Text(_) => None,
        Part::Blob(blob) if blob.media_type.starts_with("image/") => Some("vision"),
        Part::Blob(blob) => Some(blob.media_type.as_str()),
        Part::Other(other) if other.name == "image_url" => Some("vision"),
        Part::Other(other) => Some(other.name.as_str()),
    };
    let tools = is_of_tools.then_some("tools");
    tools
        .into_iter()
        .chain(message.content.iter().filter_map(of_part))
}

#[cfg(test)]
mod tests {
    use crate::{
        Blob, ErrorKind, Extension, Message, Params, Part, Prompt, Request, Role, Tool, ToolCall,
    };

    fn request() -> Request {
        Request {
            request_id: String::new(),
            model: String::new(),
            prompt: Prompt::Text("Hello".to_owned()),
            params: Params {
                max_tokens: Some(1),
                ..Params::default()
            },
            tools: vec![],
            deadline_ms: 1,
            ext: vec![],
        }
    }

    #[test]
    fn what_is_not_named_is_refused_if_it_is_asked_for() {
        let said = |message: Message| Request {
            prompt: Prompt::Chat(vec![message]),
            ..request()
        };
        let part = |part| {
            let content = vec![Part::Text("look".to_owned()), part];
            said(Message {
                content,
                ..Message::text(Role::User, "")
            })
        };
        let blob = |media_type: &str| {
            part(Part::Blob(Blob {
                media_type: media_type.to_owned(),
                data: vec![],
            }))
        };
        let other = |name| part(Part::Other(Extension::new(name, "{}")));
        let params = |params| Request {
            params,
            ..request()
        };
        let ext = |name, value| Request {
            ext: vec![Extension::new(name, value)],
            ..request()
        };
        let call = ToolCall {
            id: "1".to_owned(),
            name: "a".to_owned(),
            arguments: "{}".to_owned(),
        };
        let called = said(Message {
            tool_calls: vec![call],
            ..Message::text(Role::Assistant, "")
        });
        let stop = Params {
            stop: vec!["a".to_owned()],
            ..Params::default()
        };
        let penalty = |presence_penalty| Params {
            presence_penalty,
            ..Params::default()
        };
        let with_tool = |request| Request {
            tools: vec![Tool {
                name: "a".to_owned(),
                description: "b".to_owned(),
                parameters: "{}".to_owned(),
            }],
            ..request
        };
        let format = r#"{"type": "json_object"}"#;
        for (asked, name, param) in [
            (with_tool(request()), "tools", "tools"),
            (called, "tools", "messages"),
            (said(Message::text(Role::Tool, "b")), "tools", "messages"),
            (blob("image/png"), "vision", "messages"),
            (other("image_url"), "vision", "messages"),
            (blob("audio/wav"), "audio/wav", "messages"),
            (other("x-scent"), "x-scent", "messages"),
            (params(stop), "stop", "stop"),
            (
                params(penalty(Some(0.5))),
                "presence_penalty",
                "presence_penalty",
            ),
            (
                ext("tool_choice", "\"required\""),
                "tool_choice",
                "tool_choice",
            ),
            (
                ext("response_format", format),
                "response_format",
                "response_format",
            ),
            (ext("verbosity", "\"low\""), "verbosity", "verbosity"),
        ] {
            let error = asked.refuse_all_but(&["seed"]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{name}");
            assert_eq!(error.param.as_deref(), Some(param), "{name}");
            let what = name.replace("vision", "images (vision)");
            assert_eq!(error.message, format!("this model takes no {what}"));
            asked.refuse_all_but(&[name]).expect(name);
        }
        for (name, value) in [
            ("tool_choice", "\"auto\""),
            ("parallel_tool_calls", "false"),
            ("response_format", "{\"type\": \"text\"}"),
            ("stream", "true"),
            ("x-unknown", "1"),
        ] {
            ext(name, value).refuse_all_but(&[]).expect(name);
        }
        params(penalty(Some(0.0))).refuse_all_but(&[]).unwrap();
        let top_p = |top_p| {
            params(Params {
                top_p,
                ..Params::default()
            })
        };
        top_p(Some(1.0)).refuse_all_but(&[]).unwrap();
        top_p(Some(0.9)).refuse_all_but(&[]).unwrap_err();
        ext("tool_choice", "\"none\"").refuse_all_but(&[]).unwrap();
        for (name, value) in [
            ("parallel_tool_calls", "false"),
            ("tool_choice", "\"none\""),
        ] {
            let asked = with_tool(ext(name, value));
            let error = asked.refuse_all_but(&["tools"]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            asked.refuse_all_but(&["tools", name]).unwrap();
        }
        let free = with_tool(ext("tool_choice", "\"auto\""));
        free.refuse_all_but(&["tools"]).unwrap();
    }
}
