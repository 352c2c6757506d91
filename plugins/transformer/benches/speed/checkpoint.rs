//! A GPT-2 small of random weights, as a folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use serde_json::{Map, Value, json};

const VOCAB: usize = 50_257;
const POSITIONS: usize = 1024;
const WIDTH: usize = 768;
const LAYERS: usize = 12;

/// Writes its three files; the weights are seeded.
pub fn write(folder: &Path) -> std::io::Result<()> {
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
