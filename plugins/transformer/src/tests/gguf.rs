//! Checkpoints in one file: those of `tests/fixtures/{llama,plain,gemma3}` are the folders'
//! models as llama.cpp's converter lays them out.

use plugin_sdk::{Backend, Message, Params, Prompt, Role};

use super::parity::{Expected, difference};
use super::{Runner, answer, fixture, open, request};
use crate::checkpoint::Checkpoint;
use crate::gguf;
use crate::kernels::Dtype;
use crate::model::Predict;

fn llama() -> Vec<u8> {
    std::fs::read(fixture("llama").join("llama.gguf")).unwrap()
}

fn loaded(bytes: &[u8]) -> Result<crate::Transformer, plugin_sdk::Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.gguf"), bytes).unwrap();
    // the only one in a folder
    open(folder.path().to_str().unwrap())
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ["llama", "plain", "gemma3"] {
        let path = fixture(name).join(format!("{name}.gguf"));
        let mut runner = Runner::new(gguf::load(&path, Some(Dtype::F32)).unwrap().model);
        let expected = Expected::of(name);
        for prompt in 0..4 {
            let tokens = expected.ids(&format!("{prompt}.tokens"));
            let ours = runner.logits(&tokens, &mut runner.model.cache(), Predict::All);
            let off = difference(&ours, &expected.logits(prompt));
            assert!(off < 1e-4, "{name} {prompt}: {off}");
        }
    }
}

#[test]
fn the_tokenizer_is_that_of_the_folder() {
    let folder = fixture("llama");
    let checkpoint = Checkpoint::read(|file| folder.join(file).into()).unwrap();
    let theirs = checkpoint.load(Some(Dtype::F32)).unwrap();
    let ours = gguf::load(&folder.join("llama.gguf"), Some(Dtype::F32)).unwrap();
    for text in [
        "The harbour  lay\n\tstill, 1234!",
        "",
        "海🌊 é<|endoftext|>a",
    ] {
        let tokens = ours.tokenizer.encode(text).unwrap();
        assert_eq!(tokens, theirs.tokenizer.encode(text).unwrap());
        for token in tokens {
            assert_eq!(ours.tokenizer.bytes(token), theirs.tokenizer.bytes(token));
        }
    }
    assert_eq!(ours.end_tokens, theirs.end_tokens);
}

#[test]
fn messages_go_through_its_chat_template() {
    let model = loaded(&llama()).unwrap();
    let info = model.describe().unwrap();
    assert!(info.models[0].features.contains(&"chat".to_owned()));
    assert!(info.models[0].description.starts_with("Llama of"));
    let params = Params {
        max_tokens: Some(12),
        temperature: Some(0.0),
        ..Params::default()
    };
    let text = "user: Hi\n";
    let continued = answer(&model, text, params.clone());
    let mut chat = request("", params);
    chat.prompt = Prompt::Chat(vec![Message::text(Role::User, "Hi")]);
    let answered = super::answer_to(&model, chat);
    assert_eq!(continued, answered);
}

/// A file with other bytes, as many, where these first are.
fn changed(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|bytes| bytes == from);
    let mut bytes = bytes.to_vec();
    bytes[at.unwrap()..][..to.len()].copy_from_slice(to);
    bytes
}

/// A key with a number.
fn number(key: &str, value: u32) -> Vec<u8> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

/// Published files of Gemma 3 say of `<eos>` alone that it is an end.
#[test]
fn a_token_called_the_end_of_a_turn_ends_an_answer() {
    let sound = std::fs::read(fixture("gemma3").join("gemma3.gguf")).unwrap();
    let key = "tokenizer.ggml.eos_token_id";
    let bytes = changed(&sound, &number(key, 0), &number(key, 1));
    let bytes = changed(&bytes, b"<|endoftext|>", b"<end_of_turn>");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let loaded = gguf::load(&path, Some(Dtype::F32)).unwrap();
    assert_eq!(loaded.end_tokens, [0, 1]);
}

#[test]
fn a_file_that_is_cut_off_or_lies_is_refused_with_the_reason() {
    let sound = llama();
    for len in [0, 3, 40, 2000, sound.len() / 2, sound.len() - 1] {
        let error = loaded(&sound[..len]).unwrap_err();
        assert!(error.message.contains("model.gguf: "), "{len}: {error:?}");
    }
    let cases = [
        // of the same length
        (
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama".to_vec(),
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba".to_vec(),
            "\"mamba\", and only gpt2, llama",
        ),
        (
            number("llama.feed_forward_length", 80),
            number("llama.feed_forward_length", 96),
            "shape",
        ),
        (
            number("llama.block_count", 2),
            number("llama.block_count", 3),
            "no tensor blk.2",
        ),
        (
            number("llama.attention.head_count_kv", 2),
            number("llama.attention.head_count_kv", 4),
            "divided",
        ),
        (
            b"blk.1.ffn_up.weight".to_vec(),
            b"blk.9.ffn_up.weight".to_vec(),
            "no tensor blk.1.ffn_up",
        ),
        (
            b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2".to_vec(),
            b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0bert".to_vec(),
            "byte-level",
        ),
    ];
    for (from, to, reason) in cases {
        let message = loaded(&changed(&sound, &from, &to)).unwrap_err().message;
        assert!(message.contains(reason), "{message}");
    }
}
