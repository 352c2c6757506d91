//! Billing: tells Stripe of customers and usage.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::store::Store;

/// Starts to report to Stripe, if a key for it is configured.
///
/// # Errors
/// When the configuration cannot be used.
pub fn start(
    config: &config::Stripe,
    store: &Store,
    stop: CancellationToken,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let _ = (config, store, stop);
    Ok(None)
}
