//! `tools` of a request, and calls of them in either direction.

use plugin_sdk::Extension;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::http::error::ApiError;

/// A function that the model may call.
#[derive(Debug, Deserialize)]
pub(super) struct Tool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// The tools as plugins get them.
///
/// # Errors
/// 422 for a tool that makes no sense or is no function.
pub(super) fn checked(tools: Vec<Tool>) -> Result<Vec<plugin_sdk::Tool>, ApiError> {
    let numbered = tools.into_iter().enumerate();
    numbered
        .map(|(index, tool)| {
            let at = |field: &str| format!("tools[{index}].{field}");
            if tool.kind != "function" {
                let message = format!("tools of type {:?} are not supported", tool.kind);
                return Err(ApiError::unsupported(&at("type"), message));
            }
            let missing = || ApiError::invalid(&at("function"), "is missing");
            let function = tool.function.ok_or_else(missing)?;
            if function.name.is_empty() {
                return Err(ApiError::invalid(&at("function.name"), "must not be empty"));
            }
            let no_parameters = || json!({ "type": "object", "properties": {} });
            Ok(plugin_sdk::Tool {
                name: function.name,
                description: function.description.unwrap_or_default(),
                parameters: function
                    .parameters
                    .unwrap_or_else(no_parameters)
                    .to_string(),
            })
        })
        .collect()
}

/// The names of those whose calls must keep to their parameters, if there are any.
pub(super) fn strict(tools: &[Tool]) -> Option<Extension> {
    let functions = tools.iter().filter_map(|tool| tool.function.as_ref());
    let strict = functions.filter(|function| function.strict == Some(true));
    let names: Vec<&str> = strict.map(|function| function.name.as_str()).collect();
    (!names.is_empty()).then(|| Extension::new("strict_tools", json!(names).to_string()))
}

/// A call that a model asked for, as both requests and answers have it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Call {
    id: String,
    #[serde(rename = "type", default = "function", deserialize_with = "kind")]
    kind: String,
    function: Called,
}

#[derive(Debug, Deserialize, Serialize)]
struct Called {
    name: String,
    arguments: String,
}

fn function() -> String {
    "function".to_owned()
}

/// A type; none is said by leaving it out or by `null`, as clients do that keep pieces of a stream.
fn kind<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_else(function))
}

impl From<Call> for plugin_sdk::ToolCall {
    fn from(call: Call) -> Self {
        Self {
            id: call.id,
            name: call.function.name,
            arguments: call.function.arguments,
        }
    }
}

impl From<plugin_sdk::ToolCall> for Call {
    fn from(call: plugin_sdk::ToolCall) -> Self {
        Self {
            id: call.id,
            kind: function(),
            function: Called {
                name: call.name,
                arguments: call.arguments,
            },
        }
    }
}
