//! `model-host db`

use anyhow::bail;
use tokio::runtime::Builder;

use super::Options;
use crate::app;
use crate::clock::Clock;
use crate::config::Environment;

/// Makes every sum of money again; a server may run meanwhile.
///
/// # Errors
/// When a sum is not as kept, each of them printed, or the database cannot be
/// read.
pub fn audit(options: &Options, environment: &Environment) -> anyhow::Result<()> {
    let (config, server) = options.load(environment)?;
    let audit = Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let (store, _) = app::open(&config, &server).await?;
            let audit = store.audit(Clock.now()).await?;
            store.close().await;
            anyhow::Ok(audit)
        })?;
    println!(
        "{} accounts, {} transfers, {} holds",
        audit.accounts, audit.transfers, audit.holds
    );
    for problem in &audit.problems {
        println!("{problem}");
    }
    match audit.problems.len() {
        0 => Ok(()),
        problems => bail!("{problems} sums are not as kept"),
    }
}
