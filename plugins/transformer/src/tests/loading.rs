//! What is loaded, what is refused, and what a loaded model answers.

use plugin_sdk::{Backend, CountSource, ErrorKind, FinishReason, Params};

use super::{answer, fixture, open, request, settings};
use crate::Transformer;
use crate::checkpoint::{CONFIG, TOKENIZER, WEIGHTS};

fn greedy(max_tokens: u32) -> Params {
    Params {
        max_tokens: Some(max_tokens),
        temperature: Some(0.0),
        ..Params::default()
    }
}

#[test]
fn the_embedded_model_is_there_and_names_itself() {
    let model = open("embedded").unwrap();
    let info = model.describe().unwrap();
    assert_eq!(info.models[0].ext[0].value, "\"embedded\"");
    let (text, reason, usage) = answer(&model, "Once upon a time", greedy(20));
    assert!(!text.is_empty());
    assert!(usage.completion_tokens <= 20 && usage.source == CountSource::Exact);
    assert!(reason == FinishReason::Length || reason == FinishReason::Stop);
}

#[test]
fn sources_are_tried_in_order_and_all_reasons_are_given() {
    let folder = fixture("plain");
    let list = serde_json::json!(["./nothing-here", folder]).to_string();
    let info = open(&list).unwrap().describe().unwrap();
    assert_eq!(
        info.models[0].ext[0].value,
        serde_json::json!(folder).to_string()
    );

    let error = open(r#"["./nothing-here", "./nor-here"]"#).unwrap_err();
    assert!(
        error.message.contains("./nothing-here: config.json")
            && error.message.contains("./nor-here")
    );
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (source, dtype) in [
        ("no such id", "f32"),
        ("a/b/c", "f32"),
        ("[]", "f32"),
        ("embedded", "q9"),
    ] {
        let error =
            Transformer::open(&settings(&[("model_path", source), ("dtype", dtype)])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest, "{source} {dtype}");
    }
    // 0 MiB hold no context
    for (name, value) in [
        ("kv_cache_mib", "0"),
        ("kv_cache_mib", "much"),
        ("prefix_cache", "1"),
    ] {
        let error = Transformer::open(&settings(&[(name, value)])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest, "{name} {value}");
        assert!(error.message.contains(name), "{}", error.message);
    }
}

#[test]
fn a_family_has_a_dtype_unless_a_setting_names_one() {
    let llama = fixture("llama");
    let gguf = llama.join("llama.gguf");
    for (source, dtype) in [
        (fixture("plain"), "w8a16"),
        (fixture("plain").join("plain.gguf"), "w8a16"),
        (llama, "f16"),
        (gguf, "f16"),
        (fixture("qwen3"), "f16"),
        (fixture("gemma3"), "f16"),
    ] {
        let description =
            |model: Transformer| model.describe().unwrap().models[0].description.clone();
        let source = source.to_str().unwrap();
        let said = description(open(source).unwrap());
        assert!(said.ends_with(&format!(" in {dtype}")), "{source}: {said}");
        let pairs = settings(&[("model_path", source), ("dtype", "q8")]);
        let said = description(Transformer::open(&pairs).unwrap());
        assert!(said.ends_with(" in q8"), "{source}: {said}");
    }
}

#[test]
fn every_dtype_answers() {
    let folder = fixture("plain");
    let source = folder.to_str().unwrap();
    for dtype in ["f32", "f16", "bf16", "q8", "w8a16", "q4"] {
        let model =
            Transformer::open(&settings(&[("model_path", source), ("dtype", dtype)])).unwrap();
        assert_eq!(
            answer(&model, "The harbour", greedy(4)).2.completion_tokens,
            4,
            "{dtype}"
        );
    }
}

#[test]
fn a_damaged_file_is_refused_by_its_name() {
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(&str, Damage, &str); 7] = [
        ("config.json", |_| b"{".to_vec(), "EOF"),
        (
            "config.json",
            |b| replace(&b, "\"gpt2\"", "\"mamba\""),
            "model_type is \"mamba\", and only",
        ),
        (
            "config.json",
            |b| replace(&b, "\"n_embd\": 48", "\"n_embd\": 60"),
            "shape",
        ),
        (
            "model.safetensors",
            |b| b[..b.len() / 2].to_vec(),
            "damaged",
        ),
        ("model.safetensors", |_| Vec::new(), "damaged"),
        ("tokenizer.json", |_| b"nonsense".to_vec(), ""),
        (
            "config.json",
            |b| replace(&b, "\"vocab_size\": 300", "\"vocab_size\": 5000"),
            "5000",
        ),
    ];
    for (file, damage, reason) in cases {
        let folder = copied("plain", file, &damage);
        let error = open(folder.path().to_str().unwrap()).unwrap_err();
        assert!(error.message.contains(reason), "{file}: {}", error.message);
    }
}

#[test]
fn rotary_scaling_may_have_its_kind_by_both_names() {
    let said = |config: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let folder = copied("llama", CONFIG, config);
        let model = open(folder.path().to_str().unwrap()).unwrap();
        answer(&model, "The harbour", greedy(20)).0
    };
    let by_one = said(&|bytes| bytes);
    let kind = "\"rope_type\": \"llama3\"";
    for kinds in [
        "\"type\": \"llama3\"",
        "\"type\": \"llama3\", \"rope_type\": \"llama3\"",
        "\"rope_type\": \"llama3\", \"type\": \"default\"",
    ] {
        let by_these = said(&|bytes| replace(&bytes, kind, kinds));
        assert_eq!(by_these, by_one, "{kinds}");
    }
}

/// A checkpoint with one of its files changed.
fn copied(from: &str, file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [CONFIG, TOKENIZER, WEIGHTS] {
        let bytes = std::fs::read(fixture(from).join(name)).unwrap();
        let bytes = if name == file { change(bytes) } else { bytes };
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.contains(from), "{text}");
    text.replace(from, to).into_bytes()
}

#[test]
fn a_seed_repeats_an_answer_and_another_seed_does_not() {
    let model = open("embedded").unwrap();
    let say = |seed| {
        let params = Params {
            max_tokens: Some(30),
            seed: Some(seed),
            ..Params::default()
        };
        answer(&model, "The king", params).0
    };
    assert_eq!(say(1), say(1));
    assert_ne!(say(1), say(2));
}

#[test]
fn an_answer_is_whole_characters_whatever_the_tokens() {
    // random weights say random bytes
    let model = open(fixture("plain").to_str().unwrap()).unwrap();
    let (text, _, usage) = answer(&model, "Über dem Deich: 海", greedy(60));
    assert_eq!(usage.completion_tokens, 60);
    assert!(text.chars().count() > 10);
}

#[test]
fn prompts_without_room_are_refused_with_both_numbers() {
    let model = open(fixture("plain").to_str().unwrap()).unwrap();
    let error = model
        .generate(request(&"a b ".repeat(100), greedy(1)))
        .err()
        .unwrap();
    assert_eq!(error.kind, ErrorKind::ContextLength);
    assert!(error.message.contains("128"), "{}", error.message);
    assert_eq!(
        model.generate(request("", greedy(1))).err().unwrap().kind,
        ErrorKind::InvalidRequest
    );
}
