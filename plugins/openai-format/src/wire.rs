//! How answers are written.

use plugin_sdk::{CountSource, Usage};
use serde::Deserialize;
use serde_json::Value;

/// A whole answer, or a chunk of a streamed one.
#[derive(Deserialize)]
pub(crate) struct Wire {
    pub(crate) error: Option<Value>,
    pub(crate) choices: Option<Vec<Choice>>,
    // taken apart by hand: a usage in a shape of its own is no reason to lose the answer
    pub(crate) usage: Option<Value>,
}

#[derive(Deserialize)]
pub(crate) struct Choice {
    pub(crate) error: Option<Value>,
    pub(crate) text: Option<String>,
    /// All of it.
    pub(crate) message: Option<Message>,
    /// What a chunk adds; some servers send either beside the other.
    pub(crate) delta: Option<Message>,
    pub(crate) finish_reason: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Message {
    pub(crate) content: Option<Content>,
    pub(crate) refusal: Option<String>,
    // two names that servers have given to the same thing; some send both
    pub(crate) reasoning_content: Option<String>,
    pub(crate) reasoning: Option<String>,
    pub(crate) tool_calls: Option<Vec<Fragment>>,
}

/// What is said; Mistral's reasoning models say it in parts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of parts")]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Part {
    Text {
        text: String,
    },
    Thinking {
        thinking: Content,
    },
    /// Such as a reference to a source.
    #[serde(other)]
    Other,
}

/// A call, or in a stream a piece of one.
#[derive(Deserialize)]
pub(crate) struct Fragment {
    pub(crate) index: Option<u32>,
    pub(crate) id: Option<String>,
    pub(crate) function: Option<Function>,
}

#[derive(Default, Deserialize)]
pub(crate) struct Function {
    pub(crate) name: Option<String>,
    pub(crate) arguments: Option<String>,
}

/// The usage of an answer, if it is counted.
pub(crate) fn counted(usage: &Value) -> Option<Usage> {
    let count = |path: &str| {
        let count = usage.pointer(path)?.as_u64()?;
        Some(u32::try_from(count).unwrap_or(u32::MAX))
    };
    let cached = count("/prompt_tokens_details/cached_tokens");
    let (prompt, completion) = (count("/prompt_tokens")?, count("/completion_tokens")?);
    let within = count("/completion_tokens_details/reasoning_tokens");
    // Perplexity's deep research has it here, outside of the total as well; with others this
    // is a part of the completion
    let apart =
        count("/reasoning_tokens").filter(|reasoning| within.is_none() && *reasoning > completion);
    let reasoning = within.or(apart);
    // xAI and Google count reasoning beside the completion, where only the total has it;
    // more than there was of it, where that is told, is something else
    let counted = prompt.saturating_add(completion);
    let beside = count("/total_tokens").unwrap_or(0).saturating_sub(counted);
    let beside = apart.unwrap_or(beside.min(reasoning.unwrap_or(u32::MAX)));
    Some(Usage {
        prompt_tokens: prompt,
        completion_tokens: completion.saturating_add(beside),
        // the second name is DeepSeek's
        cached_prompt_tokens: cached
            .or_else(|| count("/prompt_cache_hit_tokens"))
            .unwrap_or(0),
        reasoning_tokens: reasoning.unwrap_or(0),
        source: CountSource::Exact,
    })
}

#[cfg(test)]
mod tests {
    use super::counted;
    use serde_json::json;

    #[test]
    fn reasoning_beside_the_completion_is_counted() {
        for (total, reasoning, expected) in [
            (None, Some(386), 1),
            (Some(399), Some(386), 387),
            // not told apart
            (Some(399), None, 387),
            // a part of the completion, as with most
            (Some(13), Some(1), 1),
            // something else is in the total, or it makes no sense
            (Some(1000), Some(386), 387),
            (Some(0), Some(386), 1),
            (Some(u64::MAX), Some(386), 387),
            (Some(u64::MAX), None, u32::MAX - 12),
        ] {
            let usage = counted(&json!({
                "prompt_tokens": 12, "completion_tokens": 1, "total_tokens": total,
                "completion_tokens_details": { "reasoning_tokens": reasoning },
            }));
            let usage = usage.unwrap();
            assert_eq!(usage.completion_tokens, expected, "{total:?} {reasoning:?}");
            assert_eq!(usage.reasoning_tokens, reasoning.unwrap_or(0));
        }
    }

    #[test]
    fn more_reasoning_than_completion_is_no_part_of_it() {
        for (reasoning, completion, expected) in [(900, 100, (1000, 900)), (90, 100, (100, 0))] {
            let usage = counted(&json!({
                "prompt_tokens": 12, "completion_tokens": completion,
                "total_tokens": 12 + completion, "reasoning_tokens": reasoning,
            }));
            let usage = usage.unwrap();
            let found = (usage.completion_tokens, usage.reasoning_tokens);
            assert_eq!(found, expected);
        }
    }
}
