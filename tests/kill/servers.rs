//! Three servers of one database: one of them is killed, the database is stopped
//! without a word, or one server is cut off from it, under load at each of them.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::eventually;
use crate::harness::{Act, Cable, GPT2, Host, Purse, Scratch, Setup, Upstream, lawgent};
use crate::{Answers, Options, ask_until_it_dies, problems, random, unsound};

/// Servers of the database.
const SERVERS: usize = 3;

/// What goes wrong in a round.
const FAULTS: [&str; 3] = ["killed", "cut off", "without a database"];

/// Runs the rounds; what is wrong at the end of one is the error.
pub async fn run(options: &Options) -> Result<(), String> {
    let Some(database) = Scratch::if_there() else {
        println!("no PostgreSQL: MODEL_HOST_TEST_POSTGRES names none");
        return Ok(());
    };
    let database = Arc::new(database);
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let setup = || {
        Host::builder()
            .config(config.clone())
            .env("MODEL_HOST_LOG", "warn,model_host::app=info")
            .on(Arc::clone(&database))
    };
    let (mut hosts, mut cables) = (Vec::new(), Vec::new());
    for _ in 0..SERVERS {
        let cable = Cable::to(&database.url()).await;
        let setup = setup().env("DATABASE_URL", cable.url());
        cables.push(cable);
        hosts.push(
            with_secret_of(hosts.first(), setup)
                .start()
                .await
                .ready()
                .await,
        );
    }
    let purse = Purse::prepaid(&hosts[0], 9_000_000_000_000_000).await;
    let answers = Answers::default();
    for round in 0..options.rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..options.clients)
            .map(|number| {
                let customer = purse.at(&hosts[number % SERVERS]).customer;
                let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
                tokio::spawn(ask_until_it_dies(customer, number, answers, stop))
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
            _ => stop_database(&cables, moment()).await,
        }
        tokio::time::sleep(moment()).await;
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("no panic");
        }
        let count = answers.lock().expect("no panic").len();
        println!("{SERVERS} servers, one {fault}: {count} answers so far");
        // the others free what the dead held
        let purse = purse.at(&hosts[victim]);
        eventually("the server is back", async || {
            let path = purse.path("");
            hosts[victim].admin().get(&path).await.status == 200
        })
        .await;
        purse.settled().await;
        let mut found = problems(&hosts[victim], &answers).await;
        found.extend(unsound(&hosts[victim], &purse).await);
        if let Some(problem) = found.into_iter().next() {
            return Err(problem);
        }
    }
    match answers.lock().expect("no panic").is_empty() {
        true => Err("nothing was ever answered".to_owned()),
        false => Ok(()),
    }
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
