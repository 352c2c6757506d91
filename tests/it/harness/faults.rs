//! Faults of the machine that a server runs on, by a library that is loaded into it.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use super::Setup;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/faults.c");

/// The library, built once for all tests of a process.
static LIBRARY: LazyLock<String> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (library, own) = (
        folder.join("faults.so"),
        folder.join(format!("faults-{}.so", std::process::id())),
    );
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]);
    let status = compile.arg(&own).arg(SOURCE).status();
    assert!(status.expect("a C compiler").success());
    // another process may have it loaded
    std::fs::rename(own, &library).expect("a file");
    library.to_str().expect("text").to_owned()
});

impl Setup {
    /// Puts the server's clock ahead by so much, or back for less than 0.
    pub fn with_clock_off(self, milliseconds: i64) -> Self {
        self.env("LD_PRELOAD", &*LIBRARY)
            .env("FAULT_CLOCK_MS", milliseconds.to_string())
    }

    /// Has each flush to the disk take so much longer.
    pub fn flushing_slowly(self, by: Duration) -> Self {
        self.env("LD_PRELOAD", &*LIBRARY)
            .env("FAULT_FLUSH_MS", by.as_millis().to_string())
    }
}
