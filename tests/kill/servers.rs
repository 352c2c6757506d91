//! Three servers of one database: one of them is killed, or cut off from it, the
//! database is stopped without a word, or its disk is slow, or Redis is gone, under load
//! at each of them. The clocks of the servers differ.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::asking::{Names, ask_until_it_dies};
use crate::books::{Answers, Books};
use crate::harness::{Cable, Database, Host, Redis, Scratch, Setup, eventually};
use crate::{Options, end, purses, random};

/// Servers of the database.
const SERVERS: usize = 3;

/// What goes wrong in a round.
const FAULTS: [&str; 5] = [
    "killed",
    "cut off",
    "without a database",
    "on a slow disk",
    "without Redis",
];

/// Runs the rounds; what is wrong at the end of one is the error.
pub async fn run(options: &Options, setup: impl Fn() -> Setup) -> Result<(), String> {
    let Some(database) = Scratch::if_there() else {
        println!("no PostgreSQL: MODEL_HOST_TEST_POSTGRES names none");
        return Ok(());
    };
    let database = Arc::new(database);
    let server = Database::Server(database.url());
    let mut redis = Redis::start().await;
    let (mut hosts, mut cables) = (Vec::new(), Vec::new());
    for number in 0..SERVERS as i64 {
        let cable = Cable::to(&database.url()).await;
        let setup = setup()
            .on(Arc::clone(&database))
            .env("DATABASE_URL", cable.url())
            .env("REDIS_URL", redis.url());
        let setup = setup.with_clock_off(options.clocks_s * 1000 * (number - 1));
        cables.push(cable);
        let host = with_secret_of(hosts.first(), setup).start().await;
        hosts.push(host.ready().await);
    }
    let mut purses = purses(&hosts[0]).await;
    let (answers, names) = (Answers::default(), Names::default());
    let mut books = Books::default();
    for round in 0..options.rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..options.clients)
            .map(|number| {
                let host = &hosts[number % SERVERS];
                let purses = [purses[0].at(host), purses[1].at(host)];
                let noted = (answers.clone(), names.clone());
                tokio::spawn(ask_until_it_dies(purses, number, noted, Arc::clone(&stop)))
            })
            .collect();
        // not a wait for something: the moment is to be any moment
        let moment = || Duration::from_millis(random(options.longest_ms));
        tokio::time::sleep(moment()).await;
        let fault = FAULTS[round as usize % FAULTS.len()];
        let victim = random(SERVERS as u64) as usize;
        match fault {
            "killed" => {
                let host = hosts.remove(victim).restart().await;
                hosts.insert(victim, host);
            }
            "cut off" => {
                cables[victim].cut();
                tokio::time::sleep(moment()).await;
                cables[victim].mend();
            }
            "without a database" => stop_database(&cables, moment()).await,
            "without Redis" => {
                redis.stop();
                tokio::time::sleep(moment()).await;
                redis.start_again().await;
            }
            _ => {
                flush_slowly(&server, options.flush_ms).await;
                tokio::time::sleep(moment()).await;
                flush_slowly(&server, 0).await;
            }
        }
        tokio::time::sleep(moment()).await;
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("no panic");
        }
        purses = [purses[0].at(&hosts[victim]), purses[1].at(&hosts[victim])];
        eventually("the server is back", async || {
            let path = purses[0].path("");
            hosts[victim].admin().get(&path).await.status == 200
        })
        .await;
        books.named += names.repeat(&purses[1]).await?;
        // what the dead held stays so until their lease is over: that is seen at the end
        if let Some(problem) = books.problem(&hosts[victim], &answers, &purses[1]).await {
            return Err(problem);
        }
        println!("{SERVERS} servers, one {fault}: {}", books.so_far());
    }
    end(&books, &purses).await
}

/// Has each flush of the database's log take so much longer.
async fn flush_slowly(database: &Database, ms: u64) {
    let settings = match ms {
        0 => ["RESET fsync", "RESET commit_delay", "RESET commit_siblings"].map(str::to_owned),
        // what waits a moment for company before it flushes, if there is none too
        _ => [
            "SET fsync = on".to_owned(),
            format!("SET commit_delay = {}", (ms * 1000).min(100_000)),
            "SET commit_siblings = 0".to_owned(),
        ],
    };
    for setting in settings {
        let sql = format!("ALTER SYSTEM {setting}");
        database.execute(&sql).await.expect("a setting");
    }
    let reload = database.execute("SELECT pg_reload_conf()").await;
    reload.expect("the settings are read");
}

/// The same secret for all servers: that of the first one.
fn with_secret_of(first: Option<&Host>, setup: Setup) -> Setup {
    match first {
        None => setup,
        Some(first) => {
            let secret = std::fs::read(first.dir().join("data/secret")).expect("a secret");
            setup.file("data/secret", secret)
        }
    }
}

/// Stops the database as a crash does and starts it again, by the command that
/// `MODEL_HOST_TEST_POSTGRES_CRASH` names; without one, nobody reaches it for a while.
async fn stop_database(cables: &[Cable], moment: Duration) {
    #[expect(clippy::disallowed_methods, reason = "a test's own settings")]
    match std::env::var("MODEL_HOST_TEST_POSTGRES_CRASH") {
        Ok(command) => {
            let crashed = tokio::task::spawn_blocking(|| Command::new(command).status()).await;
            let status = crashed.expect("no panic").expect("it runs");
            assert!(status.success(), "the database does not start again");
        }
        Err(_) => {
            cables.iter().for_each(Cable::cut);
            tokio::time::sleep(moment).await;
            cables.iter().for_each(Cable::mend);
        }
    }
}
