//! `messages` of a request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plugin_sdk::{Blob, Extension, Part, Role};
use serde::Deserialize;
use serde_json::Value;

use super::tools::Call;
use crate::http::error::ApiError;

/// One message. What else it has is ignored, as OpenAI does: clients send back all that an
/// answer had, and things of their own.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: Speaker,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
    // of an answer, by our name for it and by another; some servers send something else there
    reasoning_content: Option<Value>,
    reasoning: Option<Value>,
    // of an answer, too: a text that it has instead of content, or after it
    refusal: Option<Value>,
    // of an answer, too; without them a part of the chat would be missing
    function_call: Option<Value>,
    audio: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    System,
    /// What newer models of OpenAI's call the system.
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Value>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WirePart {
    Text { text: String },
    ImageUrl { image_url: Value },
    Refusal { refusal: String },
}

/// The messages as plugins get them.
///
/// # Errors
/// 422 for the part that makes no sense or is not supported.
pub(super) fn checked(messages: Vec<Message>) -> Result<Vec<plugin_sdk::Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "must not be empty"));
    }
    let numbered = messages.into_iter().enumerate();
    numbered
        .map(|(index, message)| one(&format!("messages[{index}]"), message))
        .collect()
}

fn one(at: &str, message: Message) -> Result<plugin_sdk::Message, ApiError> {
    let role = match message.role {
        Speaker::System | Speaker::Developer => Role::System,
        Speaker::User => Role::User,
        Speaker::Assistant => Role::Assistant,
        Speaker::Tool => Role::Tool,
    };
    for (field, value) in [
        ("function_call", &message.function_call),
        ("audio", &message.audio),
    ] {
        if value.is_some() {
            let message = format!("{field} is not supported");
            return Err(ApiError::unsupported(&format!("{at}.{field}"), message));
        }
    }
    let calls = message.tool_calls.unwrap_or_default();
    let refusal = message.refusal.as_ref().and_then(Value::as_str);
    let refusal = refusal.filter(|text| !text.is_empty() && role == Role::Assistant);
    let mut details = Vec::new();
    let mut content = match message.content {
        None if calls.is_empty() && refusal.is_none() => {
            return Err(ApiError::invalid(&format!("{at}.content"), "is missing"));
        }
        None => Vec::new(),
        Some(Content::Text(text)) => vec![Part::Text(text)],
        Some(Content::Parts(parts)) => {
            let numbered = parts.into_iter().enumerate();
            let part = |(index, value)| {
                let at = format!("{at}.content[{index}]");
                part(&at, role, value, &mut details)
            };
            numbered.map(part).collect::<Result<Vec<_>, _>>()?
        }
    };
    if let Some(refusal) = refusal {
        content.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        content.push(Part::Text(refusal.to_owned()));
    }
    if !calls.is_empty() && role != Role::Assistant {
        let message = "only an assistant's message has calls";
        return Err(ApiError::invalid(&format!("{at}.tool_calls"), message));
    }
    if (role == Role::Tool) != message.tool_call_id.is_some() {
        let message = "belongs to the messages of tools, and to all of them";
        return Err(ApiError::invalid(&format!("{at}.tool_call_id"), message));
    }
    let extension = |name, value: Value| Extension::new(name, value.to_string());
    let name = message.name.map(|name| extension("name", name.into()));
    let reasoning = [message.reasoning_content, message.reasoning].into_iter();
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let reasoning = reasoning.flatten().find(is_text);
    let reasoning = reasoning.filter(|_| role == Role::Assistant);
    let reasoning = reasoning.map(|reasoning| extension("reasoning", reasoning));
    let is_detailed = details.iter().any(|detail| !detail.is_null());
    let details = is_detailed.then(|| extension("image_detail", details.into()));
    Ok(plugin_sdk::Message {
        role,
        content,
        tool_calls: calls.into_iter().map(Into::into).collect(),
        tool_call_id: message.tool_call_id,
        ext: name.into_iter().chain(details).chain(reasoning).collect(),
    })
}

/// A part; of an image whose bytes came along, its detail goes to `details`.
fn part(at: &str, role: Role, value: Value, details: &mut Vec<Value>) -> Result<Part, ApiError> {
    let kind = value["type"].as_str().unwrap_or_default();
    if !matches!(
        (kind, role),
        ("text" | "image_url", _) | ("refusal", Role::Assistant)
    ) {
        let message = format!("parts of type {kind:?} are not supported");
        return Err(ApiError::unsupported(&format!("{at}.type"), message));
    }
    let part = serde_json::from_value(value);
    match part.map_err(|error| ApiError::invalid(at, error.to_string()))? {
        WirePart::Text { text } | WirePart::Refusal { refusal: text } => Ok(Part::Text(text)),
        WirePart::ImageUrl { image_url } => image(&format!("{at}.image_url"), image_url, details),
    }
}

/// An image: its bytes where they came with the request, else where it lies.
fn image(at: &str, mut image_url: Value, details: &mut Vec<Value>) -> Result<Part, ApiError> {
    let invalid = |message| ApiError::invalid(&format!("{at}.url"), message);
    let url = image_url["url"]
        .as_str()
        .ok_or_else(|| invalid("expected a text"))?;
    let Some(data) = url.strip_prefix("data:") else {
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(invalid("must be an http, https or data URL"));
        }
        let url = Extension::new("image_url", image_url.to_string());
        return Ok(Part::Other(url));
    };
    let (media_type, data) = data
        .split_once(";base64,")
        .ok_or_else(|| invalid("a data URL must be base64"))?;
    let blob = Blob {
        media_type: media_type.to_owned(),
        data: STANDARD
            .decode(data)
            .map_err(|_| invalid("is not valid base64"))?,
    };
    details.push(image_url["detail"].take());
    Ok(Part::Blob(blob))
}
