//! How fast GPT-2 small is, on random weights (the speed does not depend on them),
//! and how fast others are beside it.
//!
//!     cargo bench -p model-host-transformer --bench speed -- [DTYPE...]
//!         [--rounds N] [--peer NAME=COMMAND]... [--by COMMAND]
//!     cargo bench -p model-host-transformer --bench speed -- [DTYPE] --growth FILE.svg
//!
//! Prints a table: tokens a second of one stream and of eight together after
//! prompts of 32 and of 256 tokens, of reading a prompt of 256, the time to load,
//! and the most memory that the process took. Each number is the median of the
//! rounds, in which all take turns, each in a process of its own; a rate within a
//! round is the best of three.
//!
//! A peer is a command that does the same in its own way and prints a line
//! `RESULT {...}`, an object with the numbers of `COLUMNS`. What the best peer does
//! is what ours are compared with.
//!
//! With `--growth`: see `growth`.

mod checkpoint;
mod growth;
mod streams;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::{Map, Value};
use transformer::Transformer;

use streams::{open, rate, together};

const NEW_TOKENS: u32 = 128;
/// How often each rate is measured in a process, after once to warm up.
const TIMES: usize = 3;
/// Titles, names in a result, digits after the point, and whether it is a rate, to be
/// compared.
const COLUMNS: [(&str, &str, usize, bool); 7] = [
    ("one @32", "decode32_tps", 0, true),
    ("one @256", "decode256_tps", 0, true),
    ("eight @32", "b8_32_decode_tps", 0, true),
    ("eight @256", "b8_256_decode_tps", 0, true),
    ("prefill 256", "prefill256_tps", 0, true),
    ("load s", "load_s", 1, false),
    ("MiB", "peak_rss_mib", 0, false),
];
/// Before a result.
const RESULT: &str = "RESULT ";

/// Measures GPT-2 small
#[derive(Debug, Parser)]
struct Options {
    /// What weights are held in
    #[arg(default_values = ["w8a16", "q8", "q4"])]
    dtypes: Vec<String>,
    /// How often all are measured in turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Somebody else, and the command that measures it
    #[arg(long = "peer", value_name = "NAME=COMMAND", value_parser = peer)]
    peers: Vec<(String, String)>,
    /// What runs each measurement, such as `taskset -c 0,1`
    #[arg(long, value_name = "COMMAND", default_value = "")]
    by: String,
    /// Measures the first type with more and more sequences, and writes a plot
    #[arg(long, value_name = "FILE.svg")]
    growth: Option<PathBuf>,
    /// Measures the first type with this checkpoint, in this process
    #[arg(long, hide = true)]
    alone: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

fn peer(text: &str) -> Result<(String, String), &'static str> {
    let (name, command) = text.split_once('=').ok_or("expected NAME=COMMAND")?;
    Ok((name.to_owned(), command.to_owned()))
}

fn main() {
    let options = Options::parse();
    if let Some(checkpoint) = &options.alone {
        println!("{RESULT}{}", alone(checkpoint, &options.dtypes[0]));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    checkpoint::write(folder.path()).expect("the checkpoint");
    match &options.growth {
        Some(plot) => growth::measure(folder.path(), &options.dtypes[0], plot),
        None => compare(&options, folder.path()),
    }
}

/// Who is measured, and what was measured in each round.
struct Entry {
    name: String,
    command: Command,
    is_peer: bool,
    results: Vec<Value>,
}

impl Entry {
    /// The median of a number; none where a result has none.
    fn median(&self, column: &str) -> Option<f64> {
        let numbers = self.results.iter().map(|result| result[column].as_f64());
        let mut numbers = numbers.collect::<Option<Vec<_>>>()?;
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let (low, high) = (numbers[(numbers.len() - 1) / 2], numbers[middle]);
        Some((low + high) / 2.0)
    }
}

/// Measures ours and the peers in turns and prints the table.
fn compare(options: &Options, checkpoint: &Path) {
    let Options { by, .. } = options;
    let ours = options.dtypes.iter().map(|dtype| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{by} \"$0\" \"$@\""));
        command.arg(std::env::current_exe().expect("this program"));
        command.arg("--alone").arg(checkpoint).arg(dtype);
        (format!("`{dtype}`"), command, false)
    });
    let peers = options.peers.iter().map(|(name, peer)| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{by} sh -c \"$0\""))
            .arg(peer);
        (name.clone(), command, true)
    });
    let mut entries: Vec<_> = ours
        .chain(peers)
        .map(|(name, command, is_peer)| Entry {
            name,
            command,
            is_peer,
            results: Vec::new(),
        })
        .collect();
    for round in 1..=options.rounds {
        for entry in &mut entries {
            let result =
                run(&mut entry.command).unwrap_or_else(|| panic!("{} says no result", entry.name));
            eprintln!("round {round}, {}: {result}", entry.name);
            entry.results.push(result);
        }
    }
    print!("{}", table(&entries));
}

/// The last result that a command prints.
fn run(command: &mut Command) -> Option<Value> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let said = output.expect("a shell").stdout;
    let said = String::from_utf8_lossy(&said);
    let result = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(RESULT));
    serde_json::from_str(result?).ok()
}

fn table(entries: &[Entry]) -> String {
    let titles = COLUMNS.map(|(title, ..)| title).join(" | ");
    let mut table = format!("| tokens a second | {titles} |\n");
    table += &format!("| --- |{}\n", " --- |".repeat(COLUMNS.len()));
    for entry in entries {
        table += &format!("| {} |", entry.name);
        for (_, name, digits, is_rate) in COLUMNS {
            let best = entries
                .iter()
                .filter(|entry| entry.is_peer && is_rate)
                .filter_map(|peer| peer.median(name))
                .max_by(f64::total_cmp);
            table += &match (entry.median(name), best) {
                (Some(ours), Some(best)) if !entry.is_peer => {
                    format!(" {ours:.digits$} ({:.2}) |", ours / best)
                }
                (Some(number), _) => format!(" {number:.digits$} |"),
                (None, _) => " |".to_owned(),
            };
        }
        table.push('\n');
    }
    table
}

/// Measures one type in this process.
fn alone(checkpoint: &Path, dtype: &str) -> Value {
    let begun = Instant::now();
    // every prompt is to be computed, and all eight are to have room
    let model = open(checkpoint, dtype, 256, false);
    let load = begun.elapsed().as_secs_f64();
    let decode = |streams, prompt| rate(&together(&model, streams, prompt, NEW_TOKENS));
    let rates = [
        best(|| decode(1, 32)),
        best(|| decode(1, 256)),
        best(|| decode(8, 32)),
        best(|| decode(8, 256)),
        best(|| prefill(&model)),
    ];
    let numbers = rates.into_iter().chain([load, peak_mib()]);
    let numbers = numbers.map(|number| (number * 100.0).round() / 100.0);
    let names = COLUMNS.map(|(_, name, ..)| name.to_owned());
    let result: Map<_, _> = names.into_iter().zip(numbers.map(Value::from)).collect();
    Value::Object(result)
}

fn best(measure: impl Fn() -> f64) -> f64 {
    measure();
    (0..TIMES).map(|_| measure()).fold(0.0, f64::max)
}

/// Tokens a second of reading a prompt.
fn prefill(model: &Arc<Transformer>) -> f64 {
    256.0 / together(model, 1, 256, 1)[0][0].as_secs_f64()
}

/// The most memory that this process had, in MiB; 0 where the system does not tell.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
