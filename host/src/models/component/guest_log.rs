//! What a guest writes: a bounded number of bounded lines, marked with the model.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::Level;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::network::Upstream;

/// The most characters of a line.
const LINE_LIMIT: usize = 1_000;

/// Bytes that a guest may print in one go.
const PRINT_LIMIT: usize = 4 << 10;

/// The lines of one request. Clones share the number of lines left.
#[derive(Clone)]
pub(super) struct GuestLog(Arc<Inner>);

struct Inner {
    model: Arc<str>,
    upstream: Option<Arc<Upstream>>,
    lines_left: Mutex<u32>,
}

impl GuestLog {
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
        *self.0.lines_left.lock() = lines;
    }

    /// Writes a line with named values.
    pub(super) fn write_fields(&self, level: Level, message: &str, fields: &[(String, String)]) {
        // what nobody reads is not made either
        if *self.0.lines_left.lock() > 0 {
            self.write(level, &self.line(message, fields));
        }
    }

    /// A line of no more than the log takes, and somewhat over.
    fn line(&self, message: &str, fields: &[(String, String)]) -> String {
        let upstream = self.0.upstream.as_deref();
        let mut line = redacted(upstream, message, LINE_LIMIT).into_owned();
        for (name, value) in fields {
            // bytes are no fewer than characters
            if line.len() > 4 * LINE_LIMIT {
                break;
            }
            let name = redacted(upstream, name, LINE_LIMIT);
            let value = redacted(upstream, value, LINE_LIMIT);
            // to a text nothing fails
            let _ = write!(line, " {name}={value:?}");
        }
        line
    }

    pub(super) fn write(&self, level: Level, line: &str) {
        let model = &*self.0.model;
        let left = {
            let mut lines = self.0.lines_left.lock();
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
    let text = redacted(upstream, text, limit);
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(limit).collect()
}

/// The beginning of a text without the secret: so many characters, and some more. However
/// long the text is, no more of it is looked at.
fn redacted<'a>(upstream: Option<&Upstream>, text: &'a str, limit: usize) -> Cow<'a, str> {
    let secret = upstream.map_or(0, Upstream::secret_length);
    let end = text.char_indices().nth(limit + secret);
    let start = end.map_or(text, |(end, _)| &text[..end]);
    let mut redacted = match upstream {
        Some(upstream) => upstream.redact(start),
        None => start.into(),
    };
    if end.is_some() {
        // it may end within a secret, and each one before has brought that end nearer
        let whole = redacted.len().saturating_sub(secret);
        let whole = redacted.floor_char_boundary(whole);
        redacted = match redacted {
            Cow::Borrowed(text) => text[..whole].into(),
            Cow::Owned(mut text) => {
                text.truncate(whole);
                text.into()
            }
        };
    }
    redacted
}

/// Standard output or standard error of a guest, which ends in its log.
#[derive(Clone)]
pub(super) struct Print {
    pub(super) log: GuestLog,
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
        if bytes.len() > PRINT_LIMIT {
            return Err(StreamError::trap("it printed more in one go than it may"));
        }
        for line in String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| !line.is_empty())
        {
            self.log.write(self.level, line);
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "sk-very-secret";

    fn telling() -> Upstream {
        Upstream {
            secret: Some(SECRET.into()),
            ..Upstream::new("https://api.example".parse().unwrap())
        }
    }

    fn log() -> GuestLog {
        GuestLog::new("model".into(), Some(Arc::new(telling())), 10)
    }

    #[test]
    fn a_line_is_made_of_no_more_than_the_log_takes() {
        let long = "\u{1}".repeat(1 << 20);
        let fields = vec![("a".to_owned(), long.clone()); 100];
        for line in [
            log().line(&long, &fields),
            log().line("", &fields),
            log().line("", &[(long, String::new())]),
        ] {
            let length = line.len();
            assert!((LINE_LIMIT..=20 * LINE_LIMIT).contains(&length), "{length}");
        }
        let fields = [("b".to_owned(), format!("\n{SECRET}"))];
        assert_eq!(log().line("a", &fields), r#"a b="\n[secret]""#);
    }

    #[test]
    fn a_secret_is_found_where_its_line_is_cut() {
        for length in LINE_LIMIT - 200..LINE_LIMIT + 50 {
            let text = format!("{SECRET}{SECRET}{}{}", "a".repeat(length), SECRET.repeat(9));
            let line = one_line(Some(&telling()), &text, LINE_LIMIT);
            assert!(!line.contains("sk"), "{length}: {line}");
            assert!(line.len() > 700, "{length}: {}", line.len());
        }
    }

    #[test]
    fn what_is_printed_in_one_go_is_bounded() {
        let mut print = Print {
            log: log(),
            level: Level::INFO,
        };
        let bytes = |length| Bytes::from(vec![b'a'; length]);
        assert!(print.write(bytes(PRINT_LIMIT)).is_ok());
        let more = print.write(bytes(PRINT_LIMIT + 1));
        assert!(matches!(more, Err(StreamError::Trap(_))), "{more:?}");
    }
}
