//! What people see of a download.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::api::tokio::Progress;
use indicatif::ProgressBar;

/// A line in the log for each of these of a download.
const STEP_PERCENT: u64 = 10;

/// A bar on a terminal, lines in the log elsewhere.
#[derive(Clone)]
pub(super) struct Display {
    /// Bytes that have come.
    pub(super) moved: Arc<AtomicU64>,
    size: u64,
    bar: Option<ProgressBar>,
}

impl Display {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| ProgressBar::new(0));
        Self {
            moved: Arc::default(),
            size: 0,
            bar,
        }
    }
}

impl Progress for Display {
    async fn init(&mut self, size: usize, filename: &str) {
        self.size = size as u64;
        match &mut self.bar {
            Some(bar) => Progress::init(bar, size, filename).await,
            None => tracing::info!(file = filename, bytes = size, "downloading"),
        }
    }

    async fn update(&mut self, size: usize) {
        let before = self.moved.fetch_add(size as u64, Ordering::Relaxed);
        if let Some(bar) = &mut self.bar {
            return Progress::update(bar, size).await;
        }
        let percent = |bytes: u64| bytes * 100 / self.size.max(1);
        let (before, now) = (percent(before), percent(before + size as u64));
        if before / STEP_PERCENT < now / STEP_PERCENT {
            tracing::info!(percent = now, "downloading");
        }
    }

    async fn finish(&mut self) {
        if let Some(bar) = &mut self.bar {
            Progress::finish(bar).await;
        }
    }
}
