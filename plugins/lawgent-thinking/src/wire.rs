//! The completions format: the body sent, and the body of a good answer.

use plugin_sdk::{CountSource, Error, ErrorKind, FinishReason, Params, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Parameters that the caller left out are left out here: the upstream chooses.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

pub(crate) fn body(model: &str, prompt: &str, params: &Params) -> Result<Vec<u8>, Error> {
    let body = Body {
        model,
        prompt,
        max_tokens: params.max_tokens,
        temperature: params.temperature,
        top_p: params.top_p,
        top_k: params.top_k,
        seed: params.seed,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        stop: &params.stop,
    };
    serde_json::to_vec(&body).map_err(|error| {
        Error::new(ErrorKind::Internal, "the request cannot be passed on").detail(error)
    })
}

/// What a good answer says.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) reason: FinishReason,
    pub(crate) usage: Usage,
}

pub(crate) fn answer(body: &[u8], prompt: &str) -> Result<Answer, Error> {
    #[derive(Deserialize)]
    struct Wire {
        choices: Vec<Choice>,
        // taken apart by hand: a usage in a shape of its own is no reason to lose the answer
        usage: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Choice {
        text: String,
        finish_reason: Option<String>,
    }

    let wire: Wire = serde_json::from_slice(body).map_err(unusable)?;
    let choice = wire
        .choices
        .into_iter()
        .next()
        .ok_or_else(|| unusable("no choices"))?;
    let reason = match choice.finish_reason.as_deref() {
        Some("stop") => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some("content_filter") => FinishReason::ContentFilter,
        Some("tool_calls") => FinishReason::ToolCalls,
        _ => FinishReason::Other,
    };
    let usage = wire
        .usage
        .as_ref()
        .and_then(counted)
        .unwrap_or_else(|| Usage {
            prompt_tokens: estimate_tokens(prompt),
            completion_tokens: estimate_tokens(&choice.text),
            ..Usage::default()
        });
    Ok(Answer {
        text: choice.text,
        reason,
        usage,
    })
}

fn counted(usage: &Value) -> Option<Usage> {
    let count = |path: &str| {
        let count = usage.pointer(path)?.as_u64()?;
        Some(u32::try_from(count).unwrap_or(u32::MAX))
    };
    Some(Usage {
        prompt_tokens: count("/prompt_tokens")?,
        completion_tokens: count("/completion_tokens")?,
        cached_prompt_tokens: count("/prompt_tokens_details/cached_tokens").unwrap_or(0),
        reasoning_tokens: count("/completion_tokens_details/reasoning_tokens").unwrap_or(0),
        source: CountSource::Exact,
    })
}

/// A guess for a tokenizer that is unknown: four bytes a token, which is about
/// right for English and too many for nothing.
pub(crate) fn estimate_tokens(text: &str) -> u32 {
    u32::try_from(text.len().div_ceil(4)).unwrap_or(u32::MAX)
}

fn unusable(why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Upstream,
        "the model's upstream sent no usable answer",
    )
    .code("upstream_answer_broken")
    .detail(why)
}

#[cfg(test)]
mod tests {
    use super::{Answer, answer, body};
    use plugin_sdk::{CountSource, ErrorKind, FinishReason, Params, Usage};

    #[test]
    fn only_what_is_given_is_sent() {
        let params = Params {
            max_tokens: Some(5),
            temperature: Some(0.7),
            ..Params::default()
        };
        let body = String::from_utf8(body("m", "say \"hi\"", &params).unwrap()).unwrap();
        assert_eq!(
            body,
            r#"{"model":"m","prompt":"say \"hi\"","max_tokens":5,"temperature":0.7}"#
        );
    }

    #[test]
    fn an_answer_is_read() {
        let json = br#"{"choices":[{"text":" you","finish_reason":"length"}],
            "usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;
        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 1,
            source: CountSource::Exact,
            ..Usage::default()
        };
        let text = " you".to_owned();
        let reason = FinishReason::Length;
        assert_eq!(
            answer(json, "how are").unwrap(),
            Answer {
                text,
                reason,
                usage
            }
        );
    }

    #[test]
    fn missing_usage_is_estimated() {
        for usage in ["", r#","usage":null"#, r#","usage":{"prompt_tokens":-1}"#] {
            let json = format!(r#"{{"choices":[{{"text":"12345"}}]{usage}}}"#);
            let answer = answer(json.as_bytes(), "1234").unwrap();
            assert_eq!(answer.usage.source, CountSource::Estimated);
            assert_eq!(
                (answer.usage.prompt_tokens, answer.usage.completion_tokens),
                (1, 2)
            );
            assert_eq!(answer.reason, FinishReason::Other);
        }
    }

    #[test]
    fn rubbish_is_the_upstreams_fault() {
        for json in [
            "",
            "<html>",
            "[]",
            "{}",
            r#"{"choices":[]}"#,
            r#"{"choices":[{"text":1}]}"#,
        ] {
            let error = answer(json.as_bytes(), "").unwrap_err();
            assert_eq!(error.kind, ErrorKind::Upstream, "{json}");
        }
    }
}
