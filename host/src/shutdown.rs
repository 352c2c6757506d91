//! Signals: the first one asks to stop, the second one stops.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The status of a process that a second signal ended.
const FORCED: i32 = 130;

/// A token that is cancelled by the first SIGTERM or SIGINT. The second ends
/// the process at once.
///
/// # Errors
/// When the operating system refuses the handlers.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let asked = stop.clone();
    tokio::spawn(async move {
        for count in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if count > 0 {
                tracing::warn!("second signal: stopping at once");
                std::process::exit(FORCED);
            }
            tracing::info!("stopping: requests in flight are finished first");
            asked.cancel();
        }
    });
    Ok(stop)
}
