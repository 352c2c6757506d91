//! Conversions between the generated types and those of the plugin SDK, one to
//! one.

use plugin_sdk as sdk;

use super::bindings::model::plugin::schema as wit;

/// Converts an enum whose cases have the same names on both sides.
macro_rules! same_cases {
    ($from:path => $to:path { $($case:ident)* }) => {
        impl From<$from> for $to {
            fn from(value: $from) -> Self {
                match value {
                    $(<$from>::$case => Self::$case,)*
                }
            }
        }
    };
}

same_cases!(sdk::Role => wit::Role { System User Assistant Tool });
same_cases!(wit::CountSource => sdk::CountSource { Exact Estimated });
same_cases!(wit::FinishReason => sdk::FinishReason { Stop Length ToolCalls ContentFilter Other });
same_cases!(wit::ErrorKind => sdk::ErrorKind {
    InvalidRequest ContextLength ContentFilter NotFound RateLimited Overloaded UpstreamAuth Upstream
    Timeout Unsupported Cancelled Internal
});

pub(super) fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

// To the guest

impl From<sdk::Extension> for wit::Extension {
    fn from(sdk::Extension { name, value }: sdk::Extension) -> Self {
        Self { name, value }
    }
}

impl From<sdk::Part> for wit::Part {
    fn from(part: sdk::Part) -> Self {
        match part {
            sdk::Part::Text(text) => Self::Text(text),
            sdk::Part::Blob(sdk::Blob { media_type, data }) => {
                Self::Blob(wit::Blob { media_type, data })
            }
            sdk::Part::Other(extension) => Self::Other(extension.into()),
        }
    }
}

impl From<sdk::ToolCall> for wit::ToolCall {
    fn from(call: sdk::ToolCall) -> Self {
        let sdk::ToolCall {
            id,
            name,
            arguments,
        } = call;
        Self {
            id,
            name,
            arguments,
        }
    }
}

impl From<sdk::Message> for wit::Message {
    fn from(message: sdk::Message) -> Self {
        Self {
            role: message.role.into(),
            content: all(message.content),
            tool_calls: all(message.tool_calls),
            tool_call_id: message.tool_call_id,
            ext: all(message.ext),
        }
    }
}

impl From<sdk::Tool> for wit::Tool {
    fn from(tool: sdk::Tool) -> Self {
        let sdk::Tool {
            name,
            description,
            parameters,
        } = tool;
        Self {
            name,
            description,
            parameters,
        }
    }
}

impl From<sdk::Params> for wit::Params {
    fn from(params: sdk::Params) -> Self {
        Self {
            max_tokens: params.max_tokens,
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: params.top_k,
            seed: params.seed,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            stop: params.stop,
        }
    }
}

impl From<sdk::Request> for wit::Request {
    fn from(request: sdk::Request) -> Self {
        Self {
            request_id: request.request_id,
            model: request.model,
            prompt: match request.prompt {
                sdk::Prompt::Text(text) => wit::Prompt::Text(text),
                sdk::Prompt::Chat(messages) => wit::Prompt::Chat(all(messages)),
            },
            params: request.params.into(),
            tools: all(request.tools),
            deadline_ms: request.deadline_ms,
            ext: all(request.ext),
        }
    }
}

// From the guest

impl From<wit::Extension> for sdk::Extension {
    fn from(wit::Extension { name, value }: wit::Extension) -> Self {
        Self { name, value }
    }
}

impl From<wit::ToolCall> for sdk::ToolCall {
    fn from(call: wit::ToolCall) -> Self {
        let wit::ToolCall {
            id,
            name,
            arguments,
        } = call;
        Self {
            id,
            name,
            arguments,
        }
    }
}

impl From<wit::Usage> for sdk::Usage {
    fn from(usage: wit::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_prompt_tokens: usage.cached_prompt_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            source: usage.source.into(),
        }
    }
}

impl From<wit::Event> for sdk::Event {
    fn from(event: wit::Event) -> Self {
        match event {
            wit::Event::Text(text) => Self::Text(text),
            wit::Event::Reasoning(text) => Self::Reasoning(text),
            wit::Event::ToolCall(call) => Self::ToolCall(call.into()),
            wit::Event::Usage(usage) => Self::Usage(usage.into()),
            wit::Event::Finish(finish) => Self::Finish(sdk::Finish {
                reason: finish.reason.into(),
                usage: finish.usage.into(),
                ext: all(finish.ext),
            }),
            wit::Event::Other(extension) => Self::Other(extension.into()),
        }
    }
}

impl From<wit::Error> for sdk::Error {
    fn from(error: wit::Error) -> Self {
        Self {
            kind: error.kind.into(),
            message: error.message,
            code: error.code,
            param: error.param,
            retry_after_ms: error.retry_after_ms,
            upstream_status: error.upstream_status,
            detail: error.detail,
        }
    }
}

impl From<wit::ModelInfo> for sdk::ModelInfo {
    fn from(model: wit::ModelInfo) -> Self {
        Self {
            id: model.id,
            description: model.description,
            context_window: model.context_window,
            max_output_tokens: model.max_output_tokens,
            features: model.features,
            ext: all(model.ext),
        }
    }
}

impl From<wit::PluginInfo> for sdk::PluginInfo {
    fn from(plugin: wit::PluginInfo) -> Self {
        Self {
            name: plugin.name,
            version: plugin.version,
            models: all(plugin.models),
            ext: all(plugin.ext),
        }
    }
}

impl From<wit::TokenEstimate> for sdk::TokenEstimate {
    fn from(estimate: wit::TokenEstimate) -> Self {
        Self {
            prompt_tokens: estimate.prompt_tokens,
            source: estimate.source.into(),
        }
    }
}
