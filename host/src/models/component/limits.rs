//! What one request may take of this machine and of its upstream.

use std::time::Duration;

use serde::Deserialize;

/// What one request to a component may take. Time as a whole is limited by the
/// request's own deadline.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of the instance, in MiB. A Rust or JavaScript plugin is content with
    /// the default of 64, a Python plugin wants 256; at most 1024.
    pub memory_mib: usize,
    /// Milliseconds in which the plugin itself may compute. Waiting for the
    /// upstream costs nothing of it.
    pub cpu_ms: u32,
    /// Requests to the upstream.
    pub upstream_requests: u32,
    /// Longest body sent to the upstream, in bytes.
    pub request_bytes: usize,
    /// Longest body read from the upstream, and longest answer as a whole, in
    /// bytes.
    pub response_bytes: usize,
    /// Lines to the log, those on standard output and standard error included.
    pub log_lines: u32,
}

impl Limits {
    /// The most that `memory_mib` may be.
    pub const MEMORY_CEILING_MIB: usize = 1024;
    /// Memories of an instance, each within `memory_mib`: JavaScript's engine brings
    /// a second one.
    pub(super) const MEMORIES: usize = 2;

    /// The instance's memory in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_mib.saturating_mul(1 << 20)
    }

    /// `cpu_ms` as a duration.
    pub(super) fn cpu(&self) -> Duration {
        Duration::from_millis(self.cpu_ms.into())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mib: 64,
            cpu_ms: 10_000,
            upstream_requests: 8,
            request_bytes: 16 << 20,
            response_bytes: 16 << 20,
            log_lines: 100,
        }
    }
}
