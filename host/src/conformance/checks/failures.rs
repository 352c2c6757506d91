//! Upstreams that fail.

use std::time::Duration;

use plugin_sdk::{Error, ErrorKind};

use super::answers::{TEXT, say};
use super::{Unmet, Verdict, unmet};
use crate::conformance::SECRET;
use crate::conformance::subject::Subject;
use crate::conformance::upstream::{Fault, Pieces, Reply};

/// What a request gets whose upstream says nothing.
const SHORT_DEADLINE: Duration = Duration::from_millis(400);

/// More than a request's deadline, so that nobody has a reason to try again.
const RETRY_AFTER: u32 = 60;

/// Asks in every manner; what comes must be an error of which this holds.
async fn fails(
    subject: &Subject,
    expected: &str,
    holds: impl Fn(&Error) -> bool,
) -> Result<(), Unmet> {
    for manner in subject.manners() {
        let answer = subject
            .ask(subject.request(manner, "What is the answer?"))
            .await;
        match &answer.end {
            Err(error) if holds(error) => {}
            Err(error) if error.kind == ErrorKind::RateLimited => {
                let wait = error.retry_after_ms;
                let expected = format!("{expected} (retry-after-ms is {wait:?})");
                return Err(unmet(manner, &expected, &answer));
            }
            _ => return Err(unmet(manner, expected, &answer)),
        }
    }
    Ok(())
}

pub(super) async fn rate_limited(subject: &Subject) -> Verdict {
    let reply = Reply::Refusal(429, Some(RETRY_AFTER));
    subject.upstream.play(reply, Pieces::One, None);
    let expected = format!("rate-limited with retry-after-ms {}", RETRY_AFTER * 1000);
    fails(subject, &expected, |error| {
        error.kind == ErrorKind::RateLimited && error.retry_after_ms == Some(RETRY_AFTER * 1000)
    })
    .await?;
    Ok(None)
}

pub(super) async fn upstream_auth(subject: &Subject) -> Verdict {
    subject
        .upstream
        .play(Reply::Refusal(401, None), Pieces::One, None);
    let is_auth = |error: &Error| error.kind == ErrorKind::UpstreamAuth;
    fails(subject, "upstream-auth", is_auth).await?;
    Ok(None)
}

pub(super) async fn upstream_failure(subject: &Subject) -> Verdict {
    for status in [404, 500] {
        subject
            .upstream
            .play(Reply::Refusal(status, None), Pieces::One, None);
        let expected = format!("upstream for status {status}");
        fails(subject, &expected, |error| {
            error.kind == ErrorKind::Upstream
        })
        .await?;
    }
    Ok(None)
}

pub(super) async fn garbage(subject: &Subject) -> Verdict {
    for (media_type, body) in [
        (
            "text/html",
            "<html>Welcome to the Wi-Fi of your hotel</html>",
        ),
        ("application/json", "{\"hello\": [1, 2"),
        ("application/json", "{\"hello\": 1}"),
        ("text/event-stream", "data: {\"choices\": [oh\n\n"),
        ("application/json", ""),
    ] {
        subject
            .upstream
            .play(Reply::Raw(media_type, body), Pieces::One, None);
        let expected = format!("upstream for {media_type} {body:?}");
        fails(subject, &expected, |error| {
            error.kind == ErrorKind::Upstream
        })
        .await?;
    }
    Ok(None)
}

pub(super) async fn cut(subject: &Subject) -> Verdict {
    for (fault, how) in [(Fault::Cut, "cut off"), (Fault::Short, "ended early")] {
        subject
            .upstream
            .play(say(TEXT, None), Pieces::Records, Some(fault));
        let expected = format!("upstream for an answer that is {how}");
        fails(subject, &expected, |error| {
            error.kind == ErrorKind::Upstream
        })
        .await?;
    }
    Ok(None)
}

pub(super) async fn stall(subject: &Subject) -> Verdict {
    for fault in [Fault::Silence, Fault::Hold] {
        subject
            .upstream
            .play(say(TEXT, None), Pieces::Records, Some(fault));
        for manner in subject.manners() {
            let mut request = subject.request(manner, "What is the answer?");
            request.deadline_ms = u32::try_from(SHORT_DEADLINE.as_millis()).unwrap_or(u32::MAX);
            let answer = subject.ask(request).await;
            match &answer.end {
                Err(error) if error.kind == ErrorKind::Timeout => {}
                _ => {
                    let expected = format!("timeout after {} ms", SHORT_DEADLINE.as_millis());
                    return Err(unmet(manner, &expected, &answer));
                }
            }
        }
    }
    Ok(None)
}

pub(super) async fn secret(subject: &Subject) -> Verdict {
    let mut has_come = false;
    for reply in [Reply::Secret, Reply::SecretRefusal] {
        subject.upstream.play(reply, Pieces::Records, None);
        for manner in subject.manners() {
            let answer = subject
                .ask(subject.request(manner, "What is my key?"))
                .await;
            has_come |= subject
                .upstream
                .seen()
                .iter()
                .any(|seen| seen.secret() == SECRET);
            if format!("{answer:?}").contains(SECRET) {
                return Err(format!("{manner}: the key is in what the plugin reports").into());
            }
        }
    }
    if has_come {
        Ok(None)
    } else {
        Err(Unmet::Skipped(
            "the upstream got no key in a header that the kit knows",
        ))
    }
}
