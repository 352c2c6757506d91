//! Models that make their answers themselves.

use std::time::Duration;

use plugin_sdk::FinishReason;

use super::answers::REFUSES_STOP;
use super::{Unmet, Verdict, unmet};
use crate::conformance::subject::{Answer, Subject, shortened};

/// A prompt that a model continues for a while.
const PROMPT: &str = "Once upon a time there was a little girl who lived in a house";

/// New tokens of an answer that is cut short.
const FEW: u32 = 2;

/// Answers that are begun and left.
const LEFT: usize = 20;

pub(super) async fn answer(subject: &Subject) -> Verdict {
    for manner in subject.manners() {
        for prompt in [PROMPT, "Grüße an die 世界 🌍", "two\nlines\n", "  "] {
            let answer = subject.ask(subject.request(manner, prompt)).await;
            let Ok(finish) = &answer.end else {
                return Err(unmet(manner, &format!("an answer to {prompt:?}"), &answer));
            };
            let ends = answer
                .events
                .iter()
                .filter(|event| matches!(event, plugin_sdk::Event::Finish(_)))
                .count();
            if ends != 1 {
                return Err(format!("{manner}: expected one finish, got {ends}").into());
            }
            let usage = finish.usage;
            let is_counted = answer.text().is_empty() || usage.completion_tokens > 0;
            if usage.prompt_tokens == 0 || !is_counted {
                return Err(format!(
                    "{manner}: expected counts above 0 for {prompt:?}, got {usage:?}"
                )
                .into());
            }
        }
    }
    Ok(None)
}

pub(super) async fn max_tokens(subject: &Subject) -> Verdict {
    for manner in subject.manners() {
        let whole = subject.ask(subject.request(manner, PROMPT)).await;
        let mut request = subject.request(manner, PROMPT);
        request.params.max_tokens = Some(FEW);
        let few = subject.ask(request).await;
        let (Ok(whole_end), Ok(end)) = (&whole.end, &few.end) else {
            return Err(unmet(manner, "an answer", &few));
        };
        let came = end.usage.completion_tokens;
        if came > FEW {
            return Err(format!("{manner}: expected at most {FEW} new tokens, got {came}").into());
        }
        let is_cut = whole_end.usage.completion_tokens > FEW;
        if is_cut && end.reason != FinishReason::Length {
            return Err(unmet(manner, "finish Length", &few));
        }
    }
    Ok(None)
}

pub(super) async fn stop_strings(subject: &Subject) -> Verdict {
    for manner in subject.manners() {
        let whole = subject.ask(subject.request(manner, PROMPT)).await.text();
        let Some(stop) = middle(&whole) else {
            return Err(Unmet::Skipped("its answers are too short to stop in"));
        };
        let mut request = subject.request(manner, PROMPT);
        request.params.stop = vec![stop.to_owned()];
        let answer = subject.ask(request).await;
        if answer.refusal().is_some() {
            return Err(REFUSES_STOP);
        }
        if answer.end.is_err() || answer.text().contains(stop) {
            let expected = format!("a text without {}", shortened(stop));
            return Err(unmet(manner, &expected, &answer));
        }
    }
    Ok(None)
}

/// Three characters in the middle of a text.
fn middle(text: &str) -> Option<&str> {
    let starts: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
    let at = starts.len() / 2;
    Some(&text[*starts.get(at)?..*starts.get(at + 3)?])
}

pub(super) async fn first_event(subject: &Subject) -> Verdict {
    let mut slowest = Duration::ZERO;
    let mut fewest = usize::MAX;
    for manner in subject.manners().filter(|manner| manner.streamed) {
        let answer = subject.ask(subject.request(manner, PROMPT)).await;
        if answer.end.is_err() {
            return Err(unmet(manner, "an answer", &answer));
        }
        let pieces = answer.texts().count();
        if subject.promises("stream") && pieces < 2 {
            return Err(unmet(manner, "text in more than one event", &answer));
        }
        slowest = slowest.max(answer.first_text.unwrap_or(answer.took));
        fewest = fewest.min(pieces);
    }
    Ok(Some(format!(
        "first event after {:.1} ms, text in {fewest} events",
        slowest.as_secs_f64() * 1e3
    )))
}

pub(super) async fn cancellation(subject: &Subject) -> Verdict {
    for manner in subject.manners() {
        for _ in 0..LEFT {
            let mut request = subject.request(manner, PROMPT);
            request.params.max_tokens = Some(100_000);
            if let Ok(mut completion) = subject.backend.generate(request).await {
                // whatever it is; it is left
                let _ = Answer::begun().step(&mut completion).await;
            }
        }
        let mut request = subject.request(manner, PROMPT);
        request.params.max_tokens = Some(FEW);
        let answer = subject.ask(request).await;
        if answer.end.is_err() {
            return Err(unmet(manner, "an answer after others were left", &answer));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::middle;

    #[test]
    fn the_middle_of_a_text_is_found() {
        assert_eq!(middle("abcdef"), None);
        assert_eq!(middle("abcdefg"), Some("def"));
        assert_eq!(middle("äöüäöüß世"), Some("öüß"));
        assert_eq!(middle(""), None);
    }
}
