//! `model-host plugin`: what authors of plugins need. Each subcommand is a file.

mod build;
mod check;
mod model;
mod new;
mod run;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a project that builds to a plugin as it is
    New(new::Options),
    /// Build the project in a folder to a component
    Build(build::Options),
    /// Prove that a plugin keeps to the contract
    Check(check::Options),
    /// Ask a plugin, as the server would
    Run(run::Options),
}

/// Runs the subcommand.
///
/// # Errors
/// When it cannot do its work; a plugin that fails its checks is not an error but
/// a status.
pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::New(options) => new::run(options).map(|()| ExitCode::SUCCESS),
        Command::Build(options) => build::run(options).map(|()| ExitCode::SUCCESS),
        Command::Check(options) => check::run(options),
        Command::Run(options) => run::run(options).map(|()| ExitCode::SUCCESS),
    }
}
