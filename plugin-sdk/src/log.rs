//! Lines for the host's log.
//!
//! In a component the host marks each line with the model it came from, and
//! drops what is more than a request may write. In a native build, such as a
//! plugin's own unit tests, lines go to standard error; a native plugin of the
//! host uses `tracing` instead.

use std::fmt;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Each step.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an operator may want to know.
    Info,
    /// Something went wrong and was dealt with.
    Warn,
    /// Something went wrong.
    Error,
}

/// Writes a line with fields: `write(Level::Warn, "slow", &[("ms", "900")])`.
pub fn write(level: Level, message: impl fmt::Display, fields: &[(&str, &str)]) {
    #[cfg(target_family = "wasm")]
    {
        use crate::component::wit::model::plugin::log as wit;

        let level = match level {
            Level::Trace => wit::Level::Trace,
            Level::Debug => wit::Level::Debug,
            Level::Info => wit::Level::Info,
            Level::Warn => wit::Level::Warn,
            Level::Error => wit::Level::Error,
        };
        let fields: Vec<(String, String)> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        wit::write(level, &message.to_string(), &fields);
    }
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message} {fields:?}");
}

/// Writes a debug line.
pub fn debug(message: impl fmt::Display) {
    write(Level::Debug, message, &[]);
}

/// Writes an informational line.
pub fn info(message: impl fmt::Display) {
    write(Level::Info, message, &[]);
}

/// Writes a warning.
pub fn warn(message: impl fmt::Display) {
    write(Level::Warn, message, &[]);
}

/// Writes an error.
pub fn error(message: impl fmt::Display) {
    write(Level::Error, message, &[]);
}
