//! Errors of plugins, before they go further into the host.

use plugin_sdk::{Error, ErrorKind};

use super::journal::one_line;
use super::network::Upstream;

/// The most characters of a message for the caller.
const MESSAGE_LIMIT: usize = 500;
/// The most characters of a code or a field's name.
const NAME_LIMIT: usize = 64;
/// The most characters for the log; a trap brings the guest's stack.
const DETAIL_LIMIT: usize = 4_000;

/// The plugin trapped, overran a limit or broke the contract. Whose fault it is
/// cannot be the caller's, so it becomes a 502.
pub(super) fn plugin_failed(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Upstream, "the model's plugin failed")
        .code("plugin_failed")
        .detail(detail.into().chars().take(DETAIL_LIMIT).collect::<String>())
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
