//! What an answer other than 200 means.

use plugin_sdk::http::Response;
use plugin_sdk::{Error, ErrorKind};
use serde_json::Value;

/// The most characters of an upstream's message to pass on.
const MESSAGE_LIMIT: usize = 300;

pub(crate) fn from_response(response: &Response) -> Error {
    let json = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
    let said = message(&json);
    let retry_after_ms = response.header("retry-after").and_then(milliseconds);

    let mut error = match response.status {
        400 | 413 | 422 => Error::new(
            match json.pointer("/error/code").and_then(Value::as_str) {
                Some("context_length_exceeded") => ErrorKind::ContextLength,
                Some("content_filter" | "content_policy_violation") => ErrorKind::ContentFilter,
                _ => ErrorKind::InvalidRequest,
            },
            // the one case in which the caller is helped by what the upstream says
            said.as_deref()
                .unwrap_or("the model's upstream refused the request"),
        ),
        // 402: the operator's account there is empty, which is also theirs to mend
        401..=403 => Error::new(
            ErrorKind::UpstreamAuth,
            "the model's upstream did not accept this server",
        ),
        429 => Error::new(
            ErrorKind::RateLimited,
            "the model's upstream has too many requests",
        ),
        503 => Error::new(ErrorKind::Overloaded, "the model's upstream is overloaded"),
        _ => Error::new(ErrorKind::Upstream, "the model's upstream failed"),
    };
    error.upstream_status = Some(response.status);
    if matches!(error.kind, ErrorKind::RateLimited | ErrorKind::Overloaded) {
        error.retry_after_ms = retry_after_ms;
    }
    error.detail = said;
    error
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

/// Only the form in seconds: a date would need the time of day.
fn milliseconds(retry_after: &str) -> Option<u32> {
    let seconds: f64 = retry_after.trim().parse().ok()?;
    // `as` saturates, which is right for an absurdly long wait
    (seconds >= 0.0).then_some((seconds * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::from_response;
    use plugin_sdk::ErrorKind;
    use plugin_sdk::http::Response;

    fn response(status: u16, body: &str) -> Response {
        let headers = vec![("retry-after".to_owned(), b"7".to_vec())];
        Response {
            status,
            headers,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn each_status_has_its_kind() {
        use ErrorKind::{InvalidRequest, Overloaded, RateLimited, Upstream, UpstreamAuth};
        for (status, kind, retry) in [
            (204, Upstream, None),
            (302, Upstream, None),
            (400, InvalidRequest, None),
            (401, UpstreamAuth, None),
            (403, UpstreamAuth, None),
            (404, Upstream, None),
            (422, InvalidRequest, None),
            (429, RateLimited, Some(7000)),
            (500, Upstream, None),
            (503, Overloaded, Some(7000)),
        ] {
            let error = from_response(&response(status, "<html>"));
            assert_eq!(error.kind, kind, "{status}");
            assert_eq!(error.retry_after_ms, retry, "{status}");
            assert_eq!(error.upstream_status, Some(status));
        }
    }

    #[test]
    fn the_callers_message_is_one_short_line() {
        let body = format!(r#"{{"error":{{"message":"no\r\n{}"}}}}"#, "x".repeat(1000));
        let error = from_response(&response(400, &body));
        assert!(error.message.starts_with("no  xxx") && error.message.len() == 300);
        let error = from_response(&response(
            400,
            r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#,
        ));
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::ContextLength, "too long")
        );
        // but what a refused key or a failed server says is for the operator
        let error = from_response(&response(401, r#"{"error":"bad key sk-1"}"#));
        assert!(!error.message.contains("sk-1"));
        assert_eq!(error.detail.as_deref(), Some("bad key sk-1"));
    }
}
