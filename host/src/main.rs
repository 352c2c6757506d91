//! model-host: one binary in front of a company's models.
//!
//! `ARCHITECTURE.md` beside this folder has the map. Modules use only those
//! further down this list, and peers on one line do not meet.

mod app;
mod billing;
mod cli;
mod clock;
mod config;
mod conformance;
mod generate;
mod http;
mod keys;
mod limits;
mod models;
mod money;
mod reload;
mod shutdown;
mod store;
mod telemetry;

use std::process::ExitCode;

/// A request is many small allocations, and ends on other threads than it began on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
