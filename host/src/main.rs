//! model-host: one binary in front of a company's models.
//!
//! `ARCHITECTURE.md` beside this folder has the map, and the order in which modules use
//! each other.

mod app;
mod billing;
mod cli;
mod clock;
mod cohort;
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

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// A request is many small allocations, and ends on other threads than it began on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long mimalloc keeps memory that is free: its option `purge_delay`, in ms, for
/// which the bindings have no name.
const PURGE_DELAY: mi_option_t = 15;

fn main() -> ExitCode {
    // kept for its second, what loading a model left over and what answers do for a while
    // is 20 to 40 MiB of a server with GPT-2; after less than this, having it again costs
    // requests more than it saves
    #[expect(
        unsafe_code,
        reason = "an option of the allocator, which is written in C"
    )]
    // SAFETY: it sets a number, and no other thread runs yet
    unsafe {
        mi_option_set(PURGE_DELAY, 100);
    }
    cli::main()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        const DEFAULT_MS: std::ffi::c_long = 1000;
        #[expect(
            unsafe_code,
            reason = "an option of the allocator, which is written in C"
        )]
        // SAFETY: it reads a number
        let delay = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay, DEFAULT_MS);
    }
}
