//! Wiring: opens what the server needs, serves, and closes it in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::billing;
use crate::clock::Clock;
use crate::config::{self, Config, Server};
use crate::generate::Generator;
use crate::http::{self, AppState};
use crate::keys::{Keys, Secret};
use crate::limits::Limits;
use crate::models::component::{Pulled, Runtime};
use crate::models::{Current, Loader};
use crate::reload::{self, Origin, Reloader};
use crate::store::{Audience, Claim, Place, Settler, Store};

/// A server that is ready to serve.
pub struct App {
    config: Config,
    drain: Duration,
    listener: TcpListener,
    room: usize,
    state: AppState,
    settling: JoinHandle<()>,
    claim: Claim,
    process: String,
    joined: CancellationToken,
}

/// Opens the database and the keys of a configuration.
///
/// # Errors
/// When one of their files cannot be opened.
pub async fn open(config: &Config, server: &Server) -> anyhow::Result<(Store, Keys)> {
    let folder = &server.data_dir;
    let place = place(config, folder);
    let audience = Audience {
        stripe: config.stripe.secret_key.is_some(),
        webhook: config.webhook.url.is_some(),
    };
    let store = Store::open(&place, audience)
        .await
        .with_context(|| format!("cannot open the database {place}"))?;
    let secret = Secret::open(&folder.join("secret"))?;
    let keys = Keys::new(store.clone(), secret, Clock);
    keys.check_secret().await?;
    Ok((store, keys))
}

/// Where the configuration has the database: in the server's folder, unless it
/// says otherwise.
pub fn place(config: &Config, folder: &Path) -> Place {
    let Some(url) = &config.database.url else {
        return Place::File(folder.join("model-host.db"));
    };
    match url.expose_secret().strip_prefix(config::SQLITE) {
        Some(path) => Place::File(path.into()),
        None => Place::Server(url.clone()),
    }
}

impl App {
    /// Opens everything, listens, and starts to load the models.
    ///
    /// # Errors
    /// When something that the server cannot do without is missing.
    pub async fn build(
        config: Config,
        server: Server,
        origin: Origin,
        admin_key: Option<&SecretString>,
    ) -> anyhow::Result<Self> {
        let upstreams = usize::try_from(config.components.instances)?;
        let room = http::room_for_connections(upstreams);
        let place = place(&config, &server.data_dir);
        let claim = Claim::take(&server.data_dir, &place)?;
        let (store, keys) = open(&config, &server).await?;
        let process = Uuid::now_v7().to_string();
        let joined = CancellationToken::new();
        store.join(&process, joined.clone()).await?;
        if let Place::File(_) = place {
            void_holds(&store, &process).await?;
        }
        show_first_admin_key(&keys, admin_key).await?;
        let listen = server.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let cache = server.data_dir.join("cache");
        let runtime = Runtime::new(&cache.join("code"), &config.components)
            .context("cannot start the component runtime")?;
        let loader = Loader {
            runtime: Arc::new(runtime),
            pulled: Pulled::new(cache.join("components")),
        };
        let live = Current::default();
        let reloader = Reloader {
            origin,
            current: live.clone(),
            loader: loader.clone(),
            store: store.clone(),
            clock: Clock,
        };
        let requests = Arc::new(config.requests.clone());
        let limits =
            Limits::new(config.redis_url.as_ref(), requests.without_redis).context("REDIS_URL")?;
        let (settler, settling) = Settler::start(store.clone(), process.clone());
        let state = AppState {
            generator: Arc::new(Generator::new(
                live,
                loader,
                store.clone(),
                settler,
                limits,
                Arc::clone(&requests),
                Clock,
            )),
            reload: reloader.start(config.clone()),
            requests,
            trusted_proxies: server.trusted_proxies.into(),
            store,
            keys,
            clock: Clock,
        };
        Ok(Self {
            config,
            drain: Duration::from_secs(server.drain_seconds),
            listener,
            room,
            state,
            settling,
            claim,
            process,
            joined,
        })
    }

    /// Serves until `stop` is cancelled, then finishes what is in flight and
    /// closes the database.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            drain,
            listener,
            room,
            state,
            settling,
            claim,
            process,
            joined,
        } = self;
        let address = listener.local_addr()?;
        tracing::info!(%address, "serving http://{address}");
        let hangup = tokio::spawn(reload_on_hangup(state.reload.clone())?);
        let background = background(&config, &state, &stop)?;
        let keys = state.keys.clone();
        tokio::spawn(keys.clone().write_uses_until(stop.clone()));
        let (store, generator) = (state.store.clone(), state.generator.clone());
        let forgetting = tokio::spawn(generator.clone().forget_answers_until(stop.clone()));
        let requests = Arc::clone(&state.requests);
        let stopped = stop.clone().cancelled_owned();
        let server = http::serve(listener, http::router(state), room, &requests, stopped);
        let answered = async {
            server.await;
            // some go on for a client that may come back for the answer
            generator.drained().await;
        };
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(drain).await;
        };
        tokio::select! {
            () = answered => {}
            () = drained => {
                tracing::warn!("requests still in flight are cut off");
                generator.cut_off();
            }
        }
        // what is cut off is settled all the same
        generator.drained().await;
        keys.write_uses().await;
        hangup.abort();
        // its handle to the settling task
        forgetting.await.ok();
        drop(generator);
        for task in background {
            task.await.ok();
        }
        // the task ends when the last request's handle to it is gone
        tokio::time::timeout(Duration::from_secs(5), settling)
            .await
            .ok();
        joined.cancel();
        if let Err(error) = store.leave(&process).await {
            tracing::warn!(%error, "the lease ends by itself");
        }
        // a connection may say nothing any more
        tokio::time::timeout(Duration::from_secs(5), store.close())
            .await
            .ok();
        drop(claim);
        tracing::info!("stopped");
        Ok(())
    }
}

/// Frees what the server before this one held, which had the file to itself.
async fn void_holds(store: &Store, process: &str) -> anyhow::Result<()> {
    let voided = store.void_holds_of_others(process).await?;
    if voided > 0 {
        tracing::warn!(
            voided,
            "the server before this one ended with requests at work"
        );
    }
    Ok(())
}

/// Sees to it that there is an admin key, this one if it is given.
async fn show_first_admin_key(keys: &Keys, given: Option<&SecretString>) -> anyhow::Result<()> {
    let made = keys.ensure_admin(given).await;
    if let Some(key) = made.context("MODEL_HOST_ADMIN_KEY")? {
        // to standard output alone, never to the log
        println!(
            "admin key (shown this once, keep it): {}",
            key.expose_secret()
        );
    }
    Ok(())
}

/// Starts what reports and tidies until `stop`, as far as it is configured.
fn background(
    config: &Config,
    state: &AppState,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let (store, clock) = (&state.store, state.clock);
    let reporting = billing::start(&config.stripe, store.clone(), clock, stop.clone())?;
    let notifying = billing::webhook::start(&config.webhook, store.clone(), clock, stop.clone())?;
    let deleting = config.database.keep_usage_days.map(|days| {
        let keeping = store.clone().keep_usage(days, clock, stop.clone());
        tokio::spawn(keeping)
    });
    let all = [reporting, notifying, deleting];
    Ok(all.into_iter().flatten().collect())
}

/// Reloads at each SIGHUP.
fn reload_on_hangup(handle: reload::Handle) -> std::io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            handle.trigger();
        }
    })
}
