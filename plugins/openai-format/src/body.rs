//! What is sent.

use plugin_sdk::{Error, ErrorKind, Prompt, Request};
use serde::Serialize;

/// What requests of both kinds say about how to generate. Parameters that the
/// caller left out are left out here: the upstream chooses.
#[derive(Debug, Serialize)]
pub struct Options<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Signed, as these APIs have it.
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> Options<'a> {
    /// What `request` says. A stream is asked to end with its usage.
    pub fn new(request: &'a Request) -> Self {
        let params = &request.params;
        let stream = request.is_streamed();
        Self {
            max_tokens: params.max_tokens,
            max_completion_tokens: None,
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: params.top_k,
            seed: params.seed.map(u64::cast_signed),
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            stop: &params.stop,
            stream,
            stream_options: stream.then_some(StreamOptions {
                include_usage: true,
            }),
        }
    }

    /// For a server that does not know `stream_options`.
    #[must_use]
    pub fn without_stream_options(mut self) -> Self {
        self.stream_options = None;
        self
    }

    /// For a server that wants the answer's length as `max_completion_tokens`.
    #[must_use]
    pub fn with_max_completion_tokens(mut self) -> Self {
        self.max_completion_tokens = self.max_tokens.take();
        self
    }
}

/// The body of a request to continue a text.
#[derive(Debug, Serialize)]
pub struct Completion<'a> {
    model: &'a str,
    prompt: &'a str,
    #[serde(flatten)]
    options: Options<'a>,
}

impl<'a> Completion<'a> {
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a chat and for what only a chat can have.
    pub fn new(model: &'a str, request: &'a Request, options: Options<'a>) -> Result<Self, Error> {
        let unsupported =
            |message: String, param| Err(Error::new(ErrorKind::Unsupported, message).param(param));
        let Prompt::Text(prompt) = &request.prompt else {
            let message = "this model continues text; it does not chat";
            return unsupported(message.to_owned(), "messages");
        };
        if !request.tools.is_empty() {
            let message = "tools can be called in a chat only";
            return unsupported(message.to_owned(), "tools");
        }
        for name in [
            "tool_choice",
            "parallel_tool_calls",
            "response_format",
            "reasoning_effort",
            "verbosity",
        ] {
            if request.extension(name).is_some() {
                return unsupported(format!("{name} belongs to a chat"), name);
            }
        }
        Ok(Self {
            model,
            prompt,
            options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Completion, Options};
    use plugin_sdk::{ErrorKind, Extension, Params, Prompt, Request, Tool};

    fn request() -> Request {
        Request {
            request_id: "r".to_owned(),
            model: String::new(),
            prompt: Prompt::Text("say \"hi\"".to_owned()),
            params: Params {
                max_tokens: Some(5),
                temperature: Some(0.7),
                ..Params::default()
            },
            tools: vec![],
            deadline_ms: 1,
            ext: vec![],
        }
    }

    fn extension(name: &str) -> Vec<Extension> {
        vec![Extension::new(name, "true")]
    }

    #[test]
    fn only_what_is_given_is_sent() {
        let json = |request: &Request, options| {
            let body = Completion::new("m", request, options).unwrap();
            serde_json::to_string(&body).unwrap()
        };
        let given = r#""model":"m","prompt":"say \"hi\"""#;
        let whole = request();
        assert_eq!(
            json(&whole, Options::new(&whole)),
            format!(r#"{{{given},"max_tokens":5,"temperature":0.7}}"#)
        );
        // the bits of one with a sign
        let mut seeded = request();
        seeded.params.seed = Some(u64::MAX);
        assert!(json(&seeded, Options::new(&seeded)).ends_with(r#","seed":-1}"#));
        let streamed = Request {
            ext: extension("stream"),
            ..request()
        };
        let with_usage = json(&streamed, Options::new(&streamed));
        assert!(
            with_usage.ends_with(r#","stream":true,"stream_options":{"include_usage":true}}"#),
            "{with_usage}"
        );
        let options = Options::new(&streamed)
            .without_stream_options()
            .with_max_completion_tokens();
        assert_eq!(
            json(&streamed, options),
            format!(r#"{{{given},"max_completion_tokens":5,"temperature":0.7,"stream":true}}"#)
        );
    }

    #[test]
    fn what_a_completion_cannot_have_is_refused() {
        let tool = Tool {
            name: "a".to_owned(),
            description: String::new(),
            parameters: "{}".to_owned(),
        };
        let with = |change: &dyn Fn(&mut Request)| {
            let mut request = request();
            change(&mut request);
            let error = Completion::new("m", &request, Options::new(&request)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            error.param.unwrap()
        };
        assert_eq!(
            with(&|request| request.prompt = Prompt::Chat(vec![])),
            "messages"
        );
        assert_eq!(with(&|request| request.tools = vec![tool.clone()]), "tools");
        assert_eq!(
            with(&|request| request.ext = extension("tool_choice")),
            "tool_choice"
        );
    }
}
