//! What a guest writes: a bounded number of bounded lines, marked with the model.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tracing::Level;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::network::Upstream;

/// The most characters of a line.
const LINE_LIMIT: usize = 1_000;

/// Bytes that a guest may print in one go.
const PRINT_LIMIT: usize = 4 << 10;

/// The lines of one request. Clones share the number of lines left.
#[derive(Clone)]
pub(super) struct Journal(Arc<Inner>);

struct Inner {
    model: Arc<str>,
    upstream: Option<Arc<Upstream>>,
    lines_left: Mutex<u32>,
}

impl Journal {
    pub(super) fn new(model: Arc<str>, upstream: Option<Arc<Upstream>>, lines: u32) -> Self {
        let lines_left = Mutex::new(lines);
        Self(Arc::new(Inner {
            model,
            upstream,
            lines_left,
        }))
    }

    /// Allows so many lines from now on.
    pub(super) fn renew(&self, lines: u32) {
        let left = self.0.lines_left.lock();
        *left.unwrap_or_else(PoisonError::into_inner) = lines;
    }

    pub(super) fn write(&self, level: Level, line: &str) {
        let model = &*self.0.model;
        let left = {
            let mut lines = self
                .0
                .lines_left
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let left = *lines;
            *lines = left.saturating_sub(1);
            left
        };
        match left {
            0 => return,
            1 => tracing::warn!(model, "plugin writes too much, the rest is dropped"),
            _ => {}
        }
        let line = one_line(self.0.upstream.as_deref(), line, LINE_LIMIT);
        // the level of a line is part of its callsite
        match level {
            Level::TRACE => tracing::trace!(model, line, "plugin"),
            Level::DEBUG => tracing::debug!(model, line, "plugin"),
            Level::INFO => tracing::info!(model, line, "plugin"),
            Level::WARN => tracing::warn!(model, line, "plugin"),
            _ => tracing::error!(model, line, "plugin"),
        }
    }
}

/// Text of a guest, fit for a log or an answer: bounded, in one line, and without
/// the secret, even if the upstream has told it to the guest.
pub(super) fn one_line(upstream: Option<&Upstream>, text: &str, limit: usize) -> String {
    let text = match upstream {
        Some(upstream) => upstream.redact(text),
        None => text.into(),
    };
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(limit).collect()
}

/// Standard output or standard error of a guest, which ends in its journal.
#[derive(Clone)]
pub(super) struct Print {
    pub(super) journal: Journal,
    pub(super) level: Level,
}

impl IsTerminal for Print {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Print {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // asked for by WASI 0.3 only, which is not linked
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Print {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        for line in String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| !line.is_empty())
        {
            self.journal.write(self.level, line);
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PRINT_LIMIT)
    }
}

#[async_trait]
impl Pollable for Print {
    async fn ready(&mut self) {}
}
