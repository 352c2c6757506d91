//! How many tokens a request is, and how many its answer may be.

use plugin_sdk::{
    CountSource, Error as PluginError, ErrorKind, Extension, Message, Part, Prompt, Request,
    TokenEstimate, Tool, ToolCall, guess_tokens,
};

use super::{Ask, Error};
use crate::models::{Backend, Model, Session};

/// Tokens that a provider's template may add to a prompt.
const TEMPLATE_TOKENS: usize = 1024;
/// Tokens that an image or a like part of a message may come to. With gpt-4o-mini OpenAI
/// counts 2,833 and 5,667 for each of at most eight tiles; most models count far less.
const PART_TOKENS: usize = 48 * 1024;
/// Tokens that it comes to for most providers, if it is of a usual size.
const LIKELY_PART_TOKENS: usize = 1000;
/// Tokens that a template may put around each message, part of one, call and tool: ChatML has
/// five and a role for a message, and JSON's own signs some twenty for a tool.
const FRAME_TOKENS: usize = 32;
/// The extension of a message that is the model's reasoning before it.
const REASONING: &str = "reasoning";

/// Bytes that the caller wrote for the model to read.
pub(super) fn bytes(ask: &Ask) -> usize {
    let of_tool = |tool: &Tool| tool.name.len() + tool.description.len() + tool.parameters.len();
    let tools: usize = ask.tools.iter().map(of_tool).sum();
    // a schema of the answer is among them, which the model reads too
    tools
        + of_extensions(&ask.ext)
        + match &ask.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(messages) => messages.iter().map(of_message).sum(),
        }
}

/// Without the reasoning of earlier answers, which most models do not get.
fn of_message(message: &Message) -> usize {
    let parts: usize = message.content.iter().map(of_part).sum();
    let calls = message.tool_calls.iter();
    let of_call = |call: &ToolCall| call.id.len() + call.name.len() + call.arguments.len();
    let answers = message.tool_call_id.as_deref().map_or(0, str::len);
    let extensions = message.ext.iter().filter(|ext| ext.name != REASONING);
    parts + calls.map(of_call).sum::<usize>() + answers + of_extensions(extensions)
}

/// The reasoning of earlier answers.
fn reasoning(ask: &Ask) -> usize {
    let messages = match &ask.prompt {
        Prompt::Text(_) => &[][..],
        Prompt::Chat(messages) => messages,
    };
    let extensions = messages.iter().flat_map(|message| &message.ext);
    of_extensions(extensions.filter(|ext| ext.name == REASONING))
}

/// What a template frames.
fn frames(ask: &Ask) -> usize {
    let of_message = |message: &Message| message.content.len().max(1) + message.tool_calls.len();
    ask.tools.len()
        + match &ask.prompt {
            Prompt::Text(_) => 0,
            Prompt::Chat(messages) => messages.iter().map(of_message).sum(),
        }
}

fn of_extensions<'a>(extensions: impl IntoIterator<Item = &'a Extension>) -> usize {
    extensions.into_iter().map(|ext| ext.value.len()).sum()
}

fn of_part(part: &Part) -> usize {
    match part {
        Part::Text(text) => text.len(),
        Part::Blob(blob) => blob.data.len(),
        Part::Other(other) => other.value.len(),
    }
}

/// The most tokens that a plugin can honestly count for the prompt.
pub(super) fn most_in_prompt(ask: &Ask) -> u32 {
    let most = bytes(ask)
        + reasoning(ask)
        + TEMPLATE_TOKENS
        + frames(ask) * FRAME_TOKENS
        + others(ask).len() * PART_TOKENS;
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// The tokens that the prompt is likely to be.
fn likely_in_prompt(ask: &Ask) -> u32 {
    let others = others(ask);
    let text = bytes(ask) - others.iter().copied().map(of_part).sum::<usize>();
    let of_others = u32::try_from(others.len() * LIKELY_PART_TOKENS).unwrap_or(u32::MAX);
    guess_tokens(text).saturating_add(of_others)
}

/// The parts of the prompt that are no text.
fn others(ask: &Ask) -> Vec<&Part> {
    match &ask.prompt {
        Prompt::Text(_) => Vec::new(),
        Prompt::Chat(messages) => messages
            .iter()
            .flat_map(|message| &message.content)
            .filter(|part| !matches!(part, Part::Text(_)))
            .collect(),
    }
}

/// The most tokens that the request is taken to need, before its model counts:
/// its prompt as guessed, and all new tokens that it allows.
pub(super) fn reserved(ask: &Ask, model: &Model) -> u32 {
    let prompt_tokens = likely_in_prompt(ask);
    let mut new_tokens = model.spec.limits.max_new_tokens;
    new_tokens = new_tokens.min(ask.params.max_tokens.unwrap_or(u32::MAX));
    if let Some(length) = ask.max_length {
        new_tokens = new_tokens.min(length.saturating_sub(prompt_tokens));
    }
    prompt_tokens.saturating_add(new_tokens)
}

/// Tokens of the prompt by the plugin, if it estimates.
pub(super) async fn of_prompt(
    session: &mut Session<'_>,
    request: &Request,
) -> Result<Option<TokenEstimate>, PluginError> {
    match session.estimate(request).await {
        Err(error) if error.kind == ErrorKind::Unsupported => Ok(None),
        estimate => estimate.map(Some),
    }
}

/// Tokens of a prompt that the plugin does not estimate.
pub(super) fn guessed(ask: &Ask) -> TokenEstimate {
    TokenEstimate {
        prompt_tokens: likely_in_prompt(ask),
        source: CountSource::Estimated,
    }
}

/// Most new tokens: what the request, the model and the configuration all allow. Whether
/// the model has room for a prompt of which there is but a guess is for it to say.
pub(super) fn room(
    ask: &Ask,
    model: &Model,
    backend: &Backend,
    prompt_tokens: u32,
    is_guess: bool,
) -> Result<u32, Error> {
    let mut most = model.spec.limits.max_new_tokens;
    for bound in [ask.params.max_tokens, backend.max_output_tokens()] {
        most = most.min(bound.unwrap_or(u32::MAX));
    }
    let bounds = [
        (
            "the context window",
            backend.context_window().filter(|_| !is_guess),
        ),
        ("max_length", ask.max_length),
    ];
    for (bound, limit) in bounds {
        let Some(limit) = limit else { continue };
        let left = limit.checked_sub(prompt_tokens).filter(|&left| left > 0);
        most = most.min(left.ok_or(Error::NoRoom {
            prompt_tokens,
            bound,
            limit,
        })?);
    }
    Ok(most)
}
