//! `model-host plugin check`

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use serde_json::json;
use tokio::runtime::Builder;

use super::model;
use crate::conformance::{CHECKS, Check, Kit, Outcome};

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: model::Options,
    /// Make this check alone; may be given again
    #[arg(long, value_name = "CHECK")]
    only: Vec<String>,
    /// Print a JSON object a line, for programs
    #[arg(long)]
    json: bool,
}

/// Makes the checks and prints a line for each.
///
/// # Errors
/// When the plugin cannot be opened.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    for name in &options.only {
        let is_known = CHECKS.iter().any(|check| check.name == name);
        let names: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
        ensure!(
            is_known,
            "no check is called {name:?}; there are {}",
            names.join(", ")
        );
    }
    let (spec, loader) = (options.model.model()?, options.model.loader()?);
    let wanted = |check: &&Check| {
        options.only.is_empty() || options.only.iter().any(|name| name == check.name)
    };
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let kit = Kit::open(spec, &loader).await?;
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for check in CHECKS.iter().filter(wanted) {
            let outcome = kit.check(check).await;
            match outcome {
                Outcome::Passed(_) => passed += 1,
                Outcome::Failed(_) => failed += 1,
                Outcome::Skipped(_) => skipped += 1,
            }
            println!(
                "{}",
                if options.json {
                    as_json(check, &outcome)
                } else {
                    as_text(check, &outcome)
                }
            );
        }
        if !options.json {
            println!(
                "{}: {passed} ok, {failed} failed, {skipped} skipped",
                kit.info().name
            );
        }
        Ok(if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

fn as_json(check: &Check, outcome: &Outcome) -> String {
    let (result, note) = match outcome {
        Outcome::Passed(note) => ("ok", note.as_deref()),
        Outcome::Failed(why) => ("failed", Some(why.as_str())),
        Outcome::Skipped(why) => ("skipped", Some(*why)),
    };
    json!({ "check": check.name, "proves": check.proves, "result": result, "note": note })
        .to_string()
}

/// A line; a failure has what was expected, and what came, in a second one.
fn as_text(check: &Check, outcome: &Outcome) -> String {
    let (color, word, rest) = match outcome {
        Outcome::Passed(None) => (GREEN, "ok", check.proves.to_owned()),
        Outcome::Passed(Some(note)) => (GREEN, "ok", format!("{} ({note})", check.proves)),
        Outcome::Failed(why) => (RED, "FAILED", format!("{}\n        {why}", check.proves)),
        Outcome::Skipped(why) => (DIM, "skipped", (*why).to_owned()),
    };
    let (color, reset) = match std::io::stdout().is_terminal() {
        true => (color, RESET),
        false => ("", ""),
    };
    format!("{color}{word:<7}{reset} {}: {rest}", check.name)
}
