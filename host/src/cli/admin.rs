//! `model-host admin`

use anyhow::Context;
use secrecy::ExposeSecret;
use tokio::runtime::Builder;

use super::Options;
use crate::app;
use crate::config::Environment;
use crate::store::audit::Actor;

/// Makes a new admin key and prints it. A server that runs takes it at once.
///
/// # Errors
/// When the database cannot be written.
pub fn reset_key(options: &Options, environment: &Environment) -> anyhow::Result<()> {
    let (config, server) = options.load_existing(environment)?;
    let key = Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let (store, keys) = app::open(&config, &server).await?;
            let key = keys
                .reset_admin(&Actor::CommandLine)
                .await
                .context("cannot set the admin key")?;
            store.close().await;
            anyhow::Ok(key)
        })?;
    println!("{}", key.expose_secret());
    Ok(())
}
