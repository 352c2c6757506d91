//! The command line. Each subcommand is a file.

mod admin;
mod db;
mod plugin;
mod serve;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;

use crate::app;
use crate::config::{self, Config, Environment, Server};
use crate::store::Place;

/// Where variables are kept that are not in the environment.
const ENV_FILE: &str = ".env";

/// A self-hosted AI API service: keys, limits, usage and money in front of
/// model plugins.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API (what happens without a command, too)
    Serve(Options),
    /// Manage the admin key
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Look after the database
    Db {
        #[command(subcommand)]
        command: DbCommand,
    },
    /// Make, build, check and try plugins
    Plugin {
        #[command(subcommand)]
        command: plugin::Command,
    },
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Make a new admin key and print it; the old one is no longer valid
    ResetKey(Options),
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// Make every sum of money again and say where it is not as kept
    Audit(Options),
    /// Copy the file with the database, which no server may use, to a PostgreSQL server
    Copy {
        /// URL of an empty database, postgres://…; rather by the variable: arguments can be
        /// read by every user
        #[arg(long, env = "MODEL_HOST_COPY_TO", hide_env_values = true, value_name = "URL", value_parser = secret)]
        to: SecretString,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Clone, Debug, Args)]
struct Options {
    /// Configuration file
    #[arg(
        long,
        env = "MODEL_HOST_CONFIG",
        value_name = "FILE",
        default_value = "model-host.toml"
    )]
    config: PathBuf,
    /// Address to listen on [default: the configuration's, 127.0.0.1:8000]
    #[arg(long, env = "MODEL_HOST_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Folder of the database and of secrets [default: the configuration's, data]
    #[arg(long, env = "MODEL_HOST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The admin key, instead of one that is made at the first start
    // from the environment alone: arguments can be read by every user
    #[arg(long = "admin-key", env = "MODEL_HOST_ADMIN_KEY", hide = true, value_parser = secret)]
    admin_key: Option<SecretString>,
}

fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(text.into())
}

impl Options {
    /// The configuration, and its server section with these options over it.
    fn load(&self, environment: &Environment) -> anyhow::Result<(Config, Server)> {
        let config = config::load(&self.config, environment)?;
        let mut server = config.server.clone();
        if let Some(listen) = self.listen {
            server.listen = listen;
        }
        if let Some(data_dir) = &self.data_dir {
            server.data_dir.clone_from(data_dir);
        }
        Ok((config, server))
    }

    /// The same, for what works on a database that there is: it makes none.
    fn load_existing(&self, environment: &Environment) -> anyhow::Result<(Config, Server)> {
        let (config, server) = self.load(environment)?;
        if let Place::File(file) = app::place(&config, &server.data_dir)
            && !file.exists()
        {
            bail!(
                "there is no database {}: run this in the server's folder, or say --data-dir",
                file.display()
            );
        }
        Ok((config, server))
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let environment = Environment::new(ENV_FILE);
    match environment.of_file() {
        Ok(variables) => put_into_process(variables),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    // before the first client is made: reqwest panics without one
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => serve::run(&cli.options, environment).map(|()| ExitCode::SUCCESS),
        Some(Command::Serve(options)) => {
            serve::run(&options, environment).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Admin {
            command: AdminCommand::ResetKey(options),
        }) => admin::reset_key(&options, &environment).map(|()| ExitCode::SUCCESS),
        Some(Command::Db {
            command: DbCommand::Audit(options),
        }) => db::audit(&options, &environment).map(|()| ExitCode::SUCCESS),
        Some(Command::Db {
            command: DbCommand::Copy { to, options },
        }) => db::copy(to, &options, &environment).map(|()| ExitCode::SUCCESS),
        Some(Command::Plugin { command }) => plugin::run(&command),
    };
    match outcome {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sets variables that are not set, for what reads the environment by itself: clap, the
/// hub's client, OpenTelemetry.
fn put_into_process(variables: HashMap<String, String>) {
    for (name, value) in variables {
        if std::env::var_os(&name).is_none() {
            #[expect(unsafe_code, reason = "the environment is the process's")]
            // SAFETY: no other thread runs yet
            unsafe {
                std::env::set_var(name, value);
            }
        }
    }
}
