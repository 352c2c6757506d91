//! `model-host db`

use anyhow::{Context, bail};
use secrecy::SecretString;
use tokio::runtime::Builder;

use super::Options;
use crate::app;
use crate::clock::Clock;
use crate::config::{self, Config, Environment, Server};
use crate::store::{Claim, Place};

/// Makes every sum of money again; a server may run meanwhile.
///
/// # Errors
/// When a sum is not as kept, each of them printed, or the database cannot be
/// read.
pub fn audit(options: &Options, environment: &Environment) -> anyhow::Result<()> {
    let (config, server) = options.load_existing(environment)?;
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
        "{} accounts, {} transfers, {} holds, {} requests yet to be posted",
        audit.accounts, audit.transfers, audit.holds, audit.unposted
    );
    for problem in &audit.problems {
        println!("{problem}");
    }
    match audit.problems.len() {
        0 => Ok(()),
        problems => bail!("{problems} sums are not as kept"),
    }
}

/// Copies the database from its file to an empty one on a PostgreSQL server, and
/// prints what it copied. All of it is there afterwards, or nothing.
///
/// # Errors
/// When a server runs on either, when a sum of money is not as kept, or when the
/// copy is not the same.
pub fn copy(to: SecretString, options: &Options, environment: &Environment) -> anyhow::Result<()> {
    let (config, server) = options.load_existing(environment)?;
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(copy_all(to, config, server))
}

async fn copy_all(to: SecretString, config: Config, server: Server) -> anyhow::Result<()> {
    let place = app::place(&config, &server.data_dir);
    if !matches!(place, Place::File(_)) {
        bail!("only a file can be copied, and DATABASE_URL names a server");
    }
    let _claim = Claim::take(&server.data_dir, &place)?;
    let target = Config {
        database: config::Database {
            url: Some(to),
            ..config.database.clone()
        },
        ..config.clone()
    };
    let (from, _) = app::open(&config, &server).await?;
    // what a server held that is dead
    from.void_holds_of_others("").await?;
    let sums = from.audit(Clock.now()).await?;
    if !sums.problems.is_empty() {
        bail!("there are sums that are not as kept: see `model-host db audit`");
    }
    let (to, _) = app::open(&target, &server)
        .await
        .context("cannot copy to it")?;
    for copied in from.copy_to(&to).await? {
        println!("{} {}", copied.table, copied.rows);
    }
    let copied = to.audit(Clock.now()).await?;
    if !copied.problems.is_empty() || copied.transfers != sums.transfers {
        bail!("the sums of the copy are not those of the file");
    }
    println!("all rows and sums are the same: set DATABASE_URL to serve from there");
    from.close().await;
    to.close().await;
    Ok(())
}
