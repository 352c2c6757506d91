//! How fast GPT-2 small is, on random weights (the speed does not depend on them).
//!
//!     cargo bench -p model-host-transformer --bench speed -- [DTYPE...]
//!
//! Prints a table: tokens a second of one stream and of eight together after
//! prompts of 32 and of 256 tokens, of reading a prompt of 256, the time to load,
//! and the memory a model takes. Rates are the best of three rounds.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use half::f16;
use plugin_sdk::{Backend, Completion, Event, Params, Prompt, Request, Settings};
use serde_json::{Map, Value, json};
use transformer::Transformer;

const VOCAB: usize = 50_257;
const POSITIONS: usize = 1024;
const WIDTH: usize = 768;
const LAYERS: usize = 12;
const NEW_TOKENS: u32 = 128;
const ROUNDS: usize = 3;

fn main() {
    let dtypes: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let dtypes = if dtypes.is_empty() {
        vec!["w8a16".to_owned(), "q8".to_owned(), "q4".to_owned()]
    } else {
        dtypes
    };
    let folder = tempfile::tempdir().expect("a folder");
    write_checkpoint(folder.path()).expect("the checkpoint");

    let mut models = Vec::new();
    for dtype in dtypes {
        let pairs = [
            ("model_path", folder.path().to_str().expect("text")),
            ("dtype", &dtype),
            // every prompt is to be computed
            ("prefix_cache", "false"),
            // random weights repeat themselves as no real model does
            ("prompt_lookup", "false"),
            // and all eight are to have room
            ("kv_cache_mib", "256"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings: Settings = pairs.into_iter().collect();
        let (before, begun) = (memory("VmRSS"), Instant::now());
        let model = Arc::new(Transformer::open(&settings).expect("the model"));
        let load = begun.elapsed().as_secs_f64();
        models.push((dtype, model, load, memory("VmRSS").saturating_sub(before)));
    }
    // the best of rounds in which every dtype has its turn: what else the machine
    // does hits all of them
    let mut best = vec![[0.0_f64; 5]; models.len()];
    for _ in 0..ROUNDS {
        for ((_, model, _, _), best) in models.iter().zip(&mut best) {
            let decode = |streams, prompt| rate(&together(model, streams, prompt, NEW_TOKENS));
            let prefill = 256.0 / together(model, 1, 256, 1)[0][0].as_secs_f64();
            let rates = [
                decode(1, 32),
                decode(1, 256),
                decode(8, 32),
                decode(8, 256),
                prefill,
            ];
            for (best, rate) in best.iter_mut().zip(rates) {
                *best = best.max(rate);
            }
        }
    }
    println!(
        "| dtype | one @32 | one @256 | eight @32 | eight @256 | prefill 256 | load s | MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for ((dtype, _, load, memory), rates) in models.iter().zip(best) {
        let rates = rates.map(|rate| format!("{rate:.0}")).join(" | ");
        println!("| `{dtype}` | {rates} | {load:.1} | {memory} |");
    }
    println!("peak of loading and all of it: {} MiB", memory("VmHWM"));
}

/// When each token of each stream came, from the beginning on.
fn together(
    model: &Arc<Transformer>,
    streams: usize,
    prompt: usize,
    tokens: u32,
) -> Vec<Vec<Duration>> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|number| {
            let model = Arc::clone(model);
            thread::spawn(move || stream(&model, number, prompt, tokens, begun))
        })
        .collect();
    threads
        .into_iter()
        .map(|thread| thread.join().expect("a stream"))
        .collect()
}

fn stream(
    model: &Transformer,
    number: usize,
    prompt: usize,
    tokens: u32,
    begun: Instant,
) -> Vec<Duration> {
    // each character is a token
    let text = (0..prompt).map(|n| char::from(b'a' + ((n * 7 + number * 3) % 26) as u8));
    let request = Request {
        request_id: String::new(),
        model: String::new(),
        prompt: Prompt::Text(text.collect()),
        params: Params {
            max_tokens: Some(tokens),
            temperature: Some(0.0),
            ..Params::default()
        },
        tools: Vec::new(),
        deadline_ms: u32::MAX,
        ext: Vec::new(),
    };
    let mut completion = model.generate(request).expect("accepted");
    let mut times = Vec::new();
    loop {
        let events = completion.next().expect("a step");
        times.push(begun.elapsed());
        if matches!(events.last(), Some(Event::Finish(_))) {
            return times;
        }
    }
}

/// Tokens a second while all streams decode.
fn rate(streams: &[Vec<Duration>]) -> f64 {
    let from = streams
        .iter()
        .map(|times| times[0])
        .max()
        .unwrap_or_default();
    let to = streams
        .iter()
        .map(|times| times[times.len() - 1])
        .min()
        .unwrap_or_default();
    let tokens = streams
        .iter()
        .flatten()
        .filter(|&&time| time > from && time <= to);
    tokens.count() as f64 / (to - from).as_secs_f64()
}

/// A line of the process's status, in MiB; 0 where the system has none.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}

/// Writes the three files of a GPT-2 small with seeded random weights.
fn write_checkpoint(folder: &Path) -> std::io::Result<()> {
    let config = json!({
        "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": POSITIONS,
        "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 12,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string())?;

    let mut shapes = vec![
        ("wte.weight".to_owned(), vec![VOCAB, WIDTH]),
        ("wpe.weight".to_owned(), vec![POSITIONS, WIDTH]),
        ("ln_f.weight".to_owned(), vec![WIDTH]),
        ("ln_f.bias".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        for (name, from, to) in [
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ] {
            shapes.push((format!("h.{layer}.{name}.weight"), vec![from, to]));
            shapes.push((format!("h.{layer}.{name}.bias"), vec![to]));
        }
        for name in ["ln_1", "ln_2"] {
            shapes.push((format!("h.{layer}.{name}.weight"), vec![WIDTH]));
            shapes.push((format!("h.{layer}.{name}.bias"), vec![WIDTH]));
        }
    }
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in &shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let tensor = json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), tensor);
    }
    let header = Value::from(header).to_string();
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut random = 1_u64;
    for (name, shape) in &shapes {
        let is_gain = name.contains("ln_") && name.ends_with("weight");
        for _ in 0..shape.iter().product() {
            // Knuth's constants; spread as GPT-2's weights are
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let number = ((random >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.035;
            let number = f16::from_f32(if is_gain { 1.0 } else { number });
            file.write_all(&number.to_le_bytes())?;
        }
    }
    file.flush()
}

/// Bytes, and tokens of more that no text has.
fn tokenizer() -> Value {
    let printable = (0..256_u32).map(|byte| match byte {
        33..=126 | 161..=172 | 174..=255 => byte,
        // where it moves to does not matter here
        _ => byte + 512,
    });
    let mut vocab: Map<_, _> = printable
        .enumerate()
        .filter_map(|(id, char)| Some((char::from_u32(char)?.to_string(), Value::from(id))))
        .collect();
    vocab.extend((256..VOCAB).map(|id| (format!("tok{id}"), Value::from(id))));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "vocab": vocab, "merges": [] },
    })
}
