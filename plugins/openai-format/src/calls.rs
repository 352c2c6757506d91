//! Calls of tools, put together from their pieces.

use std::collections::BTreeMap;
use std::mem::take;

use plugin_sdk::ToolCall;

use crate::wire::{Fragment, Function};

/// The calls of one answer, as far as they have come.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// By their index, as the pieces of several may be mixed, and their number there.
    by_index: BTreeMap<(u32, u32), Call>,
}

#[derive(Debug, Default)]
struct Call {
    id: Option<String>,
    name: String,
    arguments: String,
}

impl Calls {
    /// Takes a piece; gives the length of what it adds to the arguments.
    pub(crate) fn add(&mut self, fragment: Fragment) -> usize {
        let Function { name, arguments } = fragment.function.unwrap_or_default();
        let id = fragment.id.filter(|id| !id.is_empty());
        let name = name.filter(|name| !name.is_empty());
        // whole calls have no index, and some servers never give one
        let last = self.by_index.last_key_value();
        let index = fragment
            .index
            .unwrap_or(match last.map(|(&(index, _), _)| index) {
                None => 0,
                Some(last) if id.is_some() || name.is_some() => last.saturating_add(1),
                Some(last) => last,
            });
        let here = self.by_index.range((index, 0)..=(index, u32::MAX));
        let number = here.last().map_or(0, |(&(_, number), call)| {
            // some give all their calls the same index; without a name it is a piece of the
            // one before, for which an old vLLM makes up another id
            let is_another = name.is_some() && id.is_some() && call.id.is_some() && call.id != id;
            number + u32::from(is_another)
        });
        let call = self.by_index.entry((index, number)).or_default();
        call.id = id.or(call.id.take());
        call.name = name.unwrap_or_else(|| take(&mut call.name));
        let arguments = arguments.unwrap_or_default();
        call.arguments += &arguments;
        arguments.len()
    }

    /// All of them, which are whole now; nothing if one has no name.
    pub(crate) fn whole(&mut self) -> Option<Vec<ToolCall>> {
        let calls = take(&mut self.by_index).into_iter();
        let whole = |((index, _), call): ((u32, u32), Call)| {
            (!call.name.is_empty()).then(|| ToolCall {
                id: call.id.unwrap_or_else(|| format!("call_{index}")),
                name: call.name,
                arguments: call.arguments,
            })
        };
        calls.map(whole).collect()
    }
}
