//! Errors of plugins, before they go further into the host.

use plugin_sdk::{Error, ErrorKind};

use super::guest_log::one_line;
use super::network::Upstream;

/// The most characters of a message for the caller.
const MESSAGE_LIMIT: usize = 500;
/// The most characters of a code or a field's name.
const NAME_LIMIT: usize = 64;
/// The most characters for the log.
const DETAIL_LIMIT: usize = 1_000;

/// The code of a plugin that broke the contract.
const PLUGIN_FAILED: &str = "plugin_failed";

/// The plugin broke the contract. Whose fault it is cannot be the caller's, so it
/// becomes a 502.
pub(super) fn plugin_failed(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Upstream, "the model's plugin failed")
        .code(PLUGIN_FAILED)
        .detail(detail.into())
}

/// Whether an error is of a plugin that broke the contract.
pub(super) fn is_plugins(error: &Error) -> bool {
    error.code.as_deref() == Some(PLUGIN_FAILED)
}

/// The plugin trapped or overran a limit. The reason comes first: the guest's stack
/// around it may be long.
pub(super) fn trapped(error: &wasmtime::Error) -> Error {
    let detail = format!("{}; {error}", error.root_cause());
    plugin_failed(one_line(None, &detail, DETAIL_LIMIT))
}

/// An error as the plugin made it, with its texts bounded and free of the secret.
pub(super) fn by_plugin(upstream: Option<&Upstream>, error: Error) -> Error {
    let line = |text: String, limit| one_line(upstream, &text, limit);
    Error {
        kind: error.kind,
        message: line(error.message, MESSAGE_LIMIT),
        code: error.code.map(|code| line(code, NAME_LIMIT)),
        param: error.param.map(|param| line(param, NAME_LIMIT)),
        retry_after_ms: error.retry_after_ms,
        upstream_status: error.upstream_status,
        detail: error.detail.map(|detail| line(detail, DETAIL_LIMIT)),
    }
}
