//! Answers in pieces, however they are cut.

use std::time::Duration;

use futures_util::FutureExt;

use super::answers::{TEXT, say, text_comes};
use super::{Unmet, Verdict, unmet};
use crate::conformance::subject::{Answer, Manner, Subject};
use crate::conformance::upstream::{Fault, Pieces};

/// Characters of one to four bytes, and a line break.
const SCRIPTS: &str = "Grüße an die 世界 🌍🌍\nund\u{a0}weiter";

/// How long the first word may take while the rest is held back: it takes
/// milliseconds, but machines may be busy.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn coalesced(subject: &Subject) -> Verdict {
    text_comes(subject, SCRIPTS, Pieces::One).await?;
    Ok(None)
}

pub(super) async fn split_records(subject: &Subject) -> Verdict {
    text_comes(subject, TEXT, Pieces::Bytes).await?;
    Ok(None)
}

pub(super) async fn split_characters(subject: &Subject) -> Verdict {
    text_comes(subject, SCRIPTS, Pieces::InsideCharacters).await?;
    Ok(None)
}

pub(super) async fn dressed(subject: &Subject) -> Verdict {
    text_comes(subject, TEXT, Pieces::Dressed).await?;
    Ok(None)
}

pub(super) async fn first_event(subject: &Subject) -> Verdict {
    if !subject.promises("stream") {
        return Err(Unmet::Skipped("doesn't have \"stream\" among its features"));
    }
    let mut slowest = Duration::ZERO;
    for &kind in &subject.kinds {
        let streamed = true;
        let manner = Manner { kind, streamed };
        subject
            .upstream
            .play(say(TEXT, None), Pieces::Records, Some(Fault::Hold));
        let mut watch = subject.upstream.watch();
        let mut answer = Answer::begun();
        let first = tokio::time::timeout(PATIENCE, async {
            let mut completion = subject
                .backend
                .generate(subject.request(manner, "Go on"))
                .await?;
            while answer.first_text.is_none() && answer.step(&mut completion).await?.is_none() {}
            Ok(completion)
        });
        let mut completion = match first.await {
            Ok(Ok(completion)) => completion,
            Ok(Err(error)) => {
                answer.end = Err(error);
                return Err(unmet(manner, "the first word", &answer));
            }
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                let came = match watch.held().now_or_never() {
                    Some(()) => "nothing: the plugin waits for the whole answer",
                    None => "no request at the upstream",
                };
                return Err(format!(
                    "{manner}: expected the first word while the upstream holds the rest back, \
                     within {seconds} s, got {came}"
                )
                .into());
            }
        };
        slowest = slowest.max(answer.first_text.unwrap_or_default());
        subject.upstream.release();
        let rest = tokio::time::timeout(PATIENCE, answer.follow(&mut completion)).await;
        if !matches!(rest, Ok(Ok(_))) || answer.text() != TEXT {
            return Err(unmet(
                manner,
                "the rest once the upstream sends it",
                &answer,
            ));
        }
    }
    Ok(Some(format!(
        "first event after {:.1} ms",
        slowest.as_secs_f64() * 1e3
    )))
}
