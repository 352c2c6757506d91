//! Conversions between the generated types and those of this crate, one to one.

use crate::component::wit::model::plugin::schema as wit;
use crate::schema;

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

same_cases!(wit::Role => schema::Role { System User Assistant Tool });
same_cases!(schema::CountSource => wit::CountSource { Exact Estimated });
same_cases!(schema::FinishReason => wit::FinishReason { Stop Length ToolCalls ContentFilter Other });
same_cases!(schema::ErrorKind => wit::ErrorKind {
    InvalidRequest ContextLength ContentFilter NotFound RateLimited Overloaded UpstreamAuth Upstream
    Timeout Unsupported Cancelled Internal
});

fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

// From the host

impl From<wit::Extension> for schema::Extension {
    fn from(wit::Extension { name, value }: wit::Extension) -> Self {
        Self { name, value }
    }
}

impl From<wit::Part> for schema::Part {
    fn from(part: wit::Part) -> Self {
        match part {
            wit::Part::Text(text) => Self::Text(text),
            wit::Part::Blob(wit::Blob { media_type, data }) => {
                Self::Blob(schema::Blob { media_type, data })
            }
            wit::Part::Other(extension) => Self::Other(extension.into()),
        }
    }
}

impl From<wit::ToolCall> for schema::ToolCall {
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

impl From<wit::Message> for schema::Message {
    fn from(message: wit::Message) -> Self {
        Self {
            role: message.role.into(),
            content: all(message.content),
            tool_calls: all(message.tool_calls),
            tool_call_id: message.tool_call_id,
            ext: all(message.ext),
        }
    }
}

impl From<wit::Tool> for schema::Tool {
    fn from(tool: wit::Tool) -> Self {
        let wit::Tool {
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

impl From<wit::Params> for schema::Params {
    fn from(params: wit::Params) -> Self {
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

impl From<wit::Request> for schema::Request {
    fn from(request: wit::Request) -> Self {
        Self {
            request_id: request.request_id,
            model: request.model,
            prompt: match request.prompt {
                wit::Prompt::Text(text) => schema::Prompt::Text(text),
                wit::Prompt::Chat(messages) => schema::Prompt::Chat(all(messages)),
            },
            params: request.params.into(),
            tools: all(request.tools),
            deadline_ms: request.deadline_ms,
            ext: all(request.ext),
        }
    }
}

// To the host

impl From<schema::Extension> for wit::Extension {
    fn from(schema::Extension { name, value }: schema::Extension) -> Self {
        Self { name, value }
    }
}

impl From<schema::ToolCall> for wit::ToolCall {
    fn from(call: schema::ToolCall) -> Self {
        let schema::ToolCall {
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

impl From<schema::Usage> for wit::Usage {
    fn from(usage: schema::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_prompt_tokens: usage.cached_prompt_tokens,
            reasoning_tokens: usage.reasoning_tokens,
            source: usage.source.into(),
        }
    }
}

impl From<schema::Event> for wit::Event {
    fn from(event: schema::Event) -> Self {
        match event {
            schema::Event::Text(text) => Self::Text(text),
            schema::Event::Reasoning(text) => Self::Reasoning(text),
            schema::Event::ToolCall(call) => Self::ToolCall(call.into()),
            schema::Event::Usage(usage) => Self::Usage(usage.into()),
            schema::Event::Finish(finish) => Self::Finish(wit::Finish {
                reason: finish.reason.into(),
                usage: finish.usage.into(),
                ext: all(finish.ext),
            }),
            schema::Event::Other(extension) => Self::Other(extension.into()),
        }
    }
}

impl From<schema::Error> for wit::Error {
    fn from(error: schema::Error) -> Self {
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

impl From<schema::ModelInfo> for wit::ModelInfo {
    fn from(model: schema::ModelInfo) -> Self {
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

impl From<schema::PluginInfo> for wit::PluginInfo {
    fn from(plugin: schema::PluginInfo) -> Self {
        Self {
            name: plugin.name,
            version: plugin.version,
            models: all(plugin.models),
            ext: all(plugin.ext),
        }
    }
}

impl From<schema::TokenEstimate> for wit::TokenEstimate {
    fn from(estimate: schema::TokenEstimate) -> Self {
        Self {
            prompt_tokens: estimate.prompt_tokens,
            source: estimate.source.into(),
        }
    }
}
