//! Good answers, and what the plugin says of itself.

use plugin_sdk::{CountSource, ErrorKind, Event, FinishReason, PluginInfo, Prompt};

use super::{Unmet, Verdict, unmet};
use crate::conformance::dialect::Counts;
use crate::conformance::subject::{Kind, Manner, Subject, shortened};
use crate::conformance::upstream::{Pieces, Reply, words};

/// What the upstream says where it does not matter.
pub(super) const TEXT: &str = "The answer is 42, of course.";

/// What cannot be said of a model that has no stop strings.
pub(super) const REFUSES_STOP: Unmet = Unmet::Skipped("refuses stop strings");

pub(super) fn say(text: &str, counts: Option<Counts>) -> Reply {
    Reply::Words(words(text), counts)
}

pub(super) async fn describe(subject: &Subject) -> Verdict {
    match missing(subject.info()) {
        None => Ok(Some(format!(
            "{} {}",
            subject.info().name,
            subject.info().version
        ))),
        Some(missing) => Err(format!("expected {missing}").into()),
    }
}

/// What is wrong with a description: what should be there.
fn missing(info: &PluginInfo) -> Option<&'static str> {
    let Some(model) = info.models.first() else {
        return Some("a model");
    };
    let feature = |name: &str| model.features.iter().any(|have| have == name);
    let window = model.context_window.unwrap_or(u32::MAX);
    let rules = [
        (!info.name.is_empty(), "a name"),
        (!info.version.is_empty(), "a version"),
        (!model.id.is_empty(), "a model's id"),
        (
            feature("chat") || feature("completion"),
            "\"chat\" or \"completion\" among the features",
        ),
        (window > 0, "a context window that is absent or not 0"),
        (
            model.max_output_tokens != Some(0),
            "max-output-tokens that is absent or not 0",
        ),
        (
            model.max_output_tokens.is_none_or(|most| most <= window),
            "max-output-tokens that fits the context window",
        ),
    ];
    rules
        .iter()
        .find(|(holds, _)| !holds)
        .map(|(_, what)| *what)
}

pub(super) async fn estimate(subject: &Subject) -> Verdict {
    let mut last = 0;
    for manner in subject.manners() {
        for prompt in ["Hello", &"Hello world. ".repeat(200)] {
            let tokens = match subject.estimate(&subject.request(manner, prompt)).await {
                Ok(estimate) => estimate.prompt_tokens,
                Err(error) if error.kind == ErrorKind::Unsupported => {
                    return Err(Unmet::Skipped("doesn't estimate"));
                }
                Err(error) => {
                    return Err(format!(
                        "{manner}: expected an estimate or unsupported, got {error}"
                    )
                    .into());
                }
            };
            if tokens == 0 || (prompt.len() > 5 && tokens <= last) {
                let prompt = shortened(prompt);
                return Err(format!(
                    "{manner}: expected more than {last} tokens for {prompt}, got {tokens}"
                )
                .into());
            }
            last = tokens;
        }
        last = 0;
    }
    Ok(None)
}

pub(super) async fn empty_prompt(subject: &Subject) -> Verdict {
    subject
        .upstream
        .play(say(TEXT, None), Pieces::Records, None);
    for manner in subject.manners() {
        let mut requests = vec![subject.request(manner, "")];
        if manner.kind == Kind::Chat {
            let mut request = subject.request(manner, "");
            request.prompt = Prompt::Chat(Vec::new());
            requests.push(request);
        }
        for request in requests {
            let answer = subject.ask(request).await;
            match &answer.end {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::InvalidRequest => {}
                Err(_) => return Err(unmet(manner, "an answer or invalid-request", &answer)),
            }
        }
    }
    Ok(None)
}

pub(super) async fn other_prompts(subject: &Subject) -> Verdict {
    let mut others = [Kind::Text, Kind::Chat]
        .into_iter()
        .filter(|kind| !subject.kinds.contains(kind))
        .peekable();
    if others.peek().is_none() {
        return Err(Unmet::Skipped("takes all kinds of prompts"));
    }
    subject
        .upstream
        .play(say(TEXT, None), Pieces::Records, None);
    for kind in others {
        let streamed = false;
        let manner = Manner { kind, streamed };
        let answer = subject.ask(subject.request(manner, "Hello")).await;
        if answer.refusal().is_none() {
            return Err(unmet(manner, "unsupported", &answer));
        }
    }
    Ok(None)
}

/// Asks in every manner for [`TEXT`], cut into such pieces.
///
/// # Errors
/// When it does not come as it was sent, or does not end once.
pub(super) async fn text_comes(subject: &Subject, text: &str, pieces: Pieces) -> Result<(), Unmet> {
    subject.upstream.play(say(text, None), pieces, None);
    for manner in subject.manners() {
        let answer = subject
            .ask(subject.request(manner, "What is the answer?"))
            .await;
        let is_end = |event: &Event| matches!(event, Event::Finish(_));
        let ends = answer.events.iter().filter(|event| is_end(event)).count();
        let is_last = answer.events.last().is_some_and(is_end);
        let is_stop = answer
            .end
            .as_ref()
            .is_ok_and(|end| end.reason == FinishReason::Stop);
        if answer.text() != text || !is_stop {
            let expected = format!("the text {} and finish Stop", shortened(text));
            return Err(unmet(manner, &expected, &answer));
        }
        if ends != 1 || !is_last {
            return Err(
                format!("{manner}: expected one finish, as the last event, got {ends}").into(),
            );
        }
    }
    Ok(())
}

pub(super) async fn answer(subject: &Subject) -> Verdict {
    text_comes(subject, TEXT, Pieces::Records).await?;
    Ok(None)
}

pub(super) async fn usage(subject: &Subject) -> Verdict {
    let counts = Counts {
        prompt: 7,
        cached: 2,
        completion: 6,
    };
    subject
        .upstream
        .play(say(TEXT, Some(counts)), Pieces::Records, None);
    for manner in subject.manners() {
        let answer = subject
            .ask(subject.request(manner, "What is the answer?"))
            .await;
        let Ok(finish) = &answer.end else {
            return Err(unmet(manner, "an answer", &answer));
        };
        let usage = finish.usage;
        let came = Counts {
            prompt: usage.prompt_tokens,
            cached: usage.cached_prompt_tokens,
            completion: usage.completion_tokens,
        };
        if came != counts || usage.source != CountSource::Exact {
            // the usual reason, which is hard to find
            let hint = match manner.streamed {
                true => "; does the request say stream_options.include_usage?",
                false => "",
            };
            return Err(format!("{manner}: expected exact {counts:?}, got {usage:?}{hint}").into());
        }
    }
    Ok(None)
}

pub(super) async fn missing_usage(subject: &Subject) -> Verdict {
    subject
        .upstream
        .play(say(TEXT, None), Pieces::Records, None);
    for manner in subject.manners() {
        let answer = subject
            .ask(subject.request(manner, "What is the answer?"))
            .await;
        let Ok(finish) = &answer.end else {
            return Err(unmet(manner, "an answer", &answer));
        };
        let usage = finish.usage;
        let is_counted = usage.prompt_tokens > 0 && usage.completion_tokens > 0;
        if !is_counted || usage.source != CountSource::Estimated {
            return Err(
                format!("{manner}: expected estimated counts above 0, got {usage:?}").into(),
            );
        }
    }
    Ok(None)
}

pub(super) async fn max_tokens(subject: &Subject) -> Verdict {
    for manner in subject.manners() {
        // each must ask anew
        subject
            .upstream
            .play(say(TEXT, None), Pieces::Records, None);
        let mut request = subject.request(manner, "What is the answer?");
        request.params.max_tokens = Some(17);
        let answer = subject.ask(request).await;
        let is_passed_on = subject.upstream.seen().last().is_some_and(|seen| {
            seen.dialect
                .is_some_and(|dialect| dialect.asks_for(&seen.body, 17))
        });
        if answer.end.is_err() || !is_passed_on {
            return Err(unmet(
                manner,
                "max-tokens 17 in the upstream's request",
                &answer,
            ));
        }
    }
    Ok(None)
}

pub(super) async fn stop_strings(subject: &Subject) -> Verdict {
    for manner in subject.manners() {
        // each must ask anew
        subject
            .upstream
            .play(say(TEXT, None), Pieces::Records, None);
        let mut request = subject.request(manner, "What is the answer?");
        request.params.stop = vec!["42".to_owned()];
        let answer = subject.ask(request).await;
        if answer.refusal().is_some() {
            return Err(REFUSES_STOP);
        }
        let is_passed_on = subject.upstream.seen().last().is_some_and(|seen| {
            seen.dialect
                .is_some_and(|dialect| dialect.stops_at(&seen.body, "42"))
        });
        let is_honoured = !answer.text().contains("42");
        if answer.end.is_err() || !(is_passed_on || is_honoured) {
            return Err(unmet(
                manner,
                "the stop string in the upstream's request",
                &answer,
            ));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use plugin_sdk::{ModelInfo, PluginInfo};

    use super::missing;

    #[test]
    fn a_description_must_be_complete() {
        let model = ModelInfo {
            id: "m".to_owned(),
            features: vec!["chat".to_owned()],
            ..ModelInfo::default()
        };
        let good = PluginInfo {
            name: "n".to_owned(),
            version: "1".to_owned(),
            models: vec![model.clone()],
            ext: Vec::new(),
        };
        assert_eq!(missing(&good), None);
        let with = |model| PluginInfo {
            models: vec![model],
            ..good.clone()
        };
        for (bad, expected) in [
            (PluginInfo::default(), "a model"),
            (
                PluginInfo {
                    name: String::new(),
                    ..good.clone()
                },
                "a name",
            ),
            (
                PluginInfo {
                    version: String::new(),
                    ..good.clone()
                },
                "a version",
            ),
            (
                with(ModelInfo {
                    id: String::new(),
                    ..model.clone()
                }),
                "a model's id",
            ),
            (
                with(ModelInfo {
                    features: Vec::new(),
                    ..model.clone()
                }),
                "\"chat\" or \"completion\" among the features",
            ),
            (
                with(ModelInfo {
                    context_window: Some(0),
                    ..model.clone()
                }),
                "a context window that is absent or not 0",
            ),
            (
                with(ModelInfo {
                    max_output_tokens: Some(0),
                    ..model.clone()
                }),
                "max-output-tokens that is absent or not 0",
            ),
            (
                with(ModelInfo {
                    context_window: Some(8),
                    max_output_tokens: Some(9),
                    ..model
                }),
                "max-output-tokens that fits the context window",
            ),
        ] {
            assert_eq!(missing(&bad), Some(expected));
        }
    }
}
