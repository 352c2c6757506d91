//! What an error of a model's API means to the caller, in the shapes that such
//! APIs use: `{"error":{"message","type","code"}}` of OpenAI and all who follow
//! it, `{"type":"error","error":{"type","message"}}` of Anthropic. Gemini puts the
//! first into a list, alone.

use serde_json::{Value, json};

use super::Response;
use crate::{Error, ErrorKind};

/// The most characters of an upstream's message to pass on.
const MESSAGE_LIMIT: usize = 300;

/// The error that an answer other than a good one is.
pub fn refused(response: &Response) -> Error {
    let json = match serde_json::from_slice(&response.body) {
        Ok(Value::Array(list)) => list.into_iter().next().unwrap_or(Value::Null),
        json => json.unwrap_or(Value::Null),
    };
    let mut error = meaning(response.status, &json);
    error.upstream_status = Some(response.status);
    match error.kind {
        ErrorKind::RateLimited | ErrorKind::Overloaded => {
            error.retry_after_ms(retry_after_ms(|name| response.header(name)))
        }
        _ => error,
    }
}

/// The error that came in place of an answer, or in the midst of it, under a
/// status of 200: what an answer has as its `error`.
pub fn reported(error: Value) -> Error {
    let json = &json!({ "error": error });
    let names = ["/error/type", "/error/code"].map(|path| json.pointer(path));
    let status = names.into_iter().flatten().find_map(|name| match name {
        Value::Number(code) => u16::try_from(code.as_u64()?).ok(),
        Value::String(name) => status(name),
        _ => None,
    });
    meaning(status.unwrap_or(500), json)
}

/// When to try again, in milliseconds: `retry-after-ms` or `Retry-After`, of which
/// only the form in seconds is read: a date would need the time of day.
pub(super) fn retry_after_ms<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<u32> {
    let number = |name, unit: f64| {
        let number: f64 = header(name)?.trim().parse().ok()?;
        // `as` saturates, which is right for an absurdly long wait
        (number >= 0.0).then_some((number * unit) as u32)
    };
    number("retry-after-ms", 1.0).or_else(|| number("retry-after", 1000.0))
}

fn meaning(status: u16, json: &Value) -> Error {
    let said = message(json);
    let is_named = |names: &[&str]| {
        let found = ["/error/code", "/error/type"].map(|path| json.pointer(path)?.as_str());
        found
            .into_iter()
            .flatten()
            .any(|name| names.contains(&name))
    };
    // the one case in which the caller is helped by what the upstream says
    let of_the_request = |kind| {
        let refused = "the model's upstream refused the request";
        Error::new(kind, said.as_deref().unwrap_or(refused))
    };
    let mut error = match status {
        // the operator's account there is empty, which is also theirs to mend
        402 => not_accepted(),
        400 if is_about_the_account(said.as_deref()) => not_accepted(),
        429 if is_named(&["insufficient_quota"]) => not_accepted(),
        403 if is_flagged(json) => of_the_request(ErrorKind::ContentFilter),
        400 | 413 | 422 => of_the_request(
            if is_named(&["context_length_exceeded"]) || is_too_long(said.as_deref()) {
                ErrorKind::ContextLength
            } else if is_named(&["content_filter", "content_policy_violation"]) {
                ErrorKind::ContentFilter
            } else {
                ErrorKind::InvalidRequest
            },
        ),
        401 | 403 => not_accepted(),
        408 | 504 => Error::new(
            ErrorKind::Timeout,
            "the model's upstream did not answer in time",
        ),
        429 => Error::new(
            ErrorKind::RateLimited,
            "the model's upstream has too many requests",
        ),
        // 529 is Anthropic's own
        503 | 529 => Error::new(ErrorKind::Overloaded, "the model's upstream is overloaded"),
        _ => Error::new(ErrorKind::Upstream, "the model's upstream failed"),
    };
    error.detail = said;
    error
}

fn not_accepted() -> Error {
    Error::new(
        ErrorKind::UpstreamAuth,
        "the model's upstream did not accept this server",
    )
}

/// Anthropic has no name of its own for a prompt that does not fit.
fn is_too_long(said: Option<&str>) -> bool {
    said.is_some_and(|said| said.starts_with("prompt is too long"))
}

/// Nor has it one for an empty account; xAI and Gemini have none for a wrong key.
fn is_about_the_account(said: Option<&str>) -> bool {
    let about = [
        "Your credit balance is too low",
        "Incorrect API key provided",
        "API key not valid",
        "API key expired",
    ];
    said.is_some_and(|said| about.iter().any(|about| said.starts_with(about)))
}

/// OpenRouter says by this status, too, that the input was flagged, and then by what.
fn is_flagged(json: &Value) -> bool {
    let metadata = json.pointer("/error/metadata");
    metadata.is_some_and(|metadata| {
        ["flagged_input", "reasons"]
            .iter()
            .any(|name| !metadata[name].is_null())
    })
}

/// The status under which an error of this name comes, where it does.
fn status(name: &str) -> Option<u16> {
    match name {
        "invalid_request_error" | "context_length_exceeded" | "content_filter" => Some(400),
        "authentication_error" | "permission_error" | "billing_error" | "invalid_api_key" => {
            Some(401)
        }
        "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => Some(429),
        "timeout_error" => Some(504),
        "overloaded_error" => Some(529),
        _ => None,
    }
}

/// What the upstream says, in one bounded line without control characters.
fn message(json: &Value) -> Option<String> {
    let said = ["/error/message", "/error", "/message", "/detail"]
        .iter()
        .find_map(|path| json.pointer(path)?.as_str())?;
    let line = said.chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = line.take(MESSAGE_LIMIT).collect();
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{refused, reported};
    use crate::ErrorKind::{
        self, ContentFilter, ContextLength, InvalidRequest, Overloaded, RateLimited, Timeout,
        Upstream, UpstreamAuth,
    };
    use crate::http::Response;

    fn response(status: u16, body: &str) -> Response {
        Response {
            status,
            headers: vec![("retry-after".to_owned(), b"7".to_vec())],
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn each_status_has_its_kind() {
        for (status, kind, retry) in [
            (204, Upstream, None),
            (302, Upstream, None),
            (400, InvalidRequest, None),
            (401, UpstreamAuth, None),
            (402, UpstreamAuth, None),
            (403, UpstreamAuth, None),
            (404, Upstream, None),
            (422, InvalidRequest, None),
            (429, RateLimited, Some(7000)),
            (500, Upstream, None),
            (503, Overloaded, Some(7000)),
            (504, Timeout, None),
            (529, Overloaded, Some(7000)),
        ] {
            let error = refused(&response(status, "<html>"));
            assert_eq!(error.kind, kind, "{status}");
            assert_eq!(error.retry_after_ms, retry, "{status}");
            assert_eq!(error.upstream_status, Some(status));
        }
    }

    #[test]
    fn a_wait_in_milliseconds_is_finer() {
        let mut response = response(429, "");
        let finer = ("retry-after-ms".to_owned(), b"250".to_vec());
        response.headers.push(finer);
        assert_eq!(refused(&response).retry_after_ms, Some(250));
    }

    #[test]
    fn names_are_finer_than_the_status() {
        for (status, body, kind) in [
            (
                400,
                r#"{"error":{"code":"context_length_exceeded"}}"#,
                ContextLength,
            ),
            (400, r#"{"error":{"code":"content_filter"}}"#, ContentFilter),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error",
                    "message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
                ContextLength,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error",
                    "message":"Your credit balance is too low to access the Anthropic API."}}"#,
                UpstreamAuth,
            ),
            (
                429,
                r#"{"error":{"type":"insufficient_quota"}}"#,
                UpstreamAuth,
            ),
            (
                400,
                r#"{"code":"Client specified an invalid argument",
                    "error":"Incorrect API key provided: xa***ey."}"#,
                UpstreamAuth,
            ),
            (
                400,
                r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid one.",
                    "status":"INVALID_ARGUMENT"}}]"#,
                UpstreamAuth,
            ),
            (
                400,
                r#"[{"error":{"code":"content_filter"}}]"#,
                ContentFilter,
            ),
            (400, "[]", InvalidRequest),
            (
                403,
                r#"{"error":{"code":403,"message":"Your input was flagged","metadata":{
                    "reasons":["violence"],"flagged_input":"…","provider_name":"OpenAI"}}}"#,
                ContentFilter,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"Key limit exceeded","metadata":null}}"#,
                UpstreamAuth,
            ),
        ] {
            assert_eq!(refused(&response(status, body)).kind, kind, "{body}");
        }
    }

    #[test]
    fn an_error_within_an_answer_has_the_kind_of_its_name() {
        let kinds: &[(&str, ErrorKind)] = &[
            (r#"{"type":"overloaded_error"}"#, Overloaded),
            (r#"{"type":"api_error","message":"x"}"#, Upstream),
            (r#"{"type":"rate_limit_error"}"#, RateLimited),
            (r#"{"code":429,"message":"slow down"}"#, RateLimited),
            (
                r#"{"type":"requests","code":"rate_limit_exceeded"}"#,
                RateLimited,
            ),
            (r#"{"type":"authentication_error"}"#, UpstreamAuth),
            (r#""it broke""#, Upstream),
        ];
        for (json, kind) in kinds {
            let error = reported(serde_json::from_str(json).unwrap());
            assert_eq!((error.kind, error.upstream_status), (*kind, None), "{json}");
        }
    }

    #[test]
    fn the_callers_message_is_one_short_line() {
        let body = format!(r#"{{"error":{{"message":"no\r\n{}"}}}}"#, "x".repeat(1000));
        let error = refused(&response(400, &body));
        assert!(error.message.starts_with("no  xxx") && error.message.len() == 300);
        // also where it comes in a list
        let listed = r#"[{"error":{"code":400,"message":"top_k is too large"}}]"#;
        assert_eq!(
            refused(&response(400, listed)).message,
            "top_k is too large"
        );
        // but what a refused key or a failed server says is for the operator
        let error = refused(&response(401, r#"{"error":"bad key sk-1"}"#));
        assert!(!error.message.contains("sk-1"));
        assert_eq!(error.detail.as_deref(), Some("bad key sk-1"));
    }
}
