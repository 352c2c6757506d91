//! `model-host serve`

use anyhow::Context;
use tokio::runtime::Builder;

use super::Options;
use crate::app::App;
use crate::config::Environment;
use crate::reload::Origin;
use crate::{shutdown, telemetry};

/// Serves until a signal comes.
///
/// # Errors
/// When the server cannot start.
pub fn run(options: &Options, environment: Environment) -> anyhow::Result<()> {
    let (config, server) = options.load(&environment)?;
    std::fs::create_dir_all(&server.data_dir)
        .with_context(|| format!("cannot make {}", server.data_dir.display()))?;
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let telemetry = telemetry::start()?;
        let stop = shutdown::on_signal()?;
        let origin = Origin {
            path: options.config.clone(),
            environment,
        };
        let app = App::build(config, server, origin, options.admin_key.as_ref()).await?;
        let served = app.serve(stop).await;
        telemetry.end();
        served
    });
    // what still runs reads or compiles models, and nobody waits for those now
    runtime.shutdown_background();
    served
}
