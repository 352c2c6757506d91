//! Checkpoints of other families than GPT-2's, through the server.

use serde_json::{Value, json};

use crate::harness::{Host, eventually};

/// A small random Llama in one file, with a chat template.
const LLAMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../plugins/transformer/tests/fixtures/llama/llama.gguf"
);

async fn serve(path: &str, more: &str) -> Host {
    let config = format!(
        "[[models]]\nid = 1\nname = \"small\"\nplugin = \"transformer\"\nmodel_path = {path:?}\n{more}"
    );
    Host::builder().config(config).start().await
}

fn ask(question: &str, max_tokens: u32) -> Value {
    json!({
        "model": "small", "messages": [{ "role": "user", "content": question }],
        "temperature": 0, "max_tokens": max_tokens,
    })
}

#[tokio::test]
async fn a_llama_chats_by_its_own_template() {
    let host = serve(LLAMA, "dtype = \"f32\"\n").await.ready().await;
    let customer = host.customer().await;
    let chat = customer
        .post("/v1/chat/completions", ask("Hi", 12))
        .await
        .expect(200);
    let body =
        json!({ "model": "small", "prompt": "user: Hi\n", "temperature": 0, "max_tokens": 12 });
    let text = customer.post("/v1/completions", body).await.expect(200);
    assert_eq!(
        chat["choices"][0]["message"]["content"],
        text["choices"][0]["text"]
    );
    assert_eq!(chat["usage"]["completion_tokens"], 12);

    let mut picture = ask("", 4);
    picture["messages"][0]["content"] = json!([
        { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAEC" } },
    ]);
    let refused = customer.post("/v1/chat/completions", picture).await;
    assert!(refused.expect(501).to_string().contains("no images"));
}

#[tokio::test]
async fn what_a_chat_asks_for_and_cannot_have_is_refused_by_its_name() {
    let host = serve(LLAMA, "dtype = \"f32\"\n").await.ready().await;
    let customer = host.customer().await;
    let asking = async |field: &str, value: Value| {
        let mut body = ask("Hi", 4);
        body[field] = value;
        customer.post("/v1/chat/completions", body).await
    };
    let schema = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": {} } });
    let function = json!({ "type": "function", "function": { "name": "a" } });
    for (field, value) in [
        ("response_format", json!({ "type": "json_object" })),
        ("response_format", schema),
        ("tool_choice", json!("required")),
        ("tool_choice", function.clone()),
        ("tools", json!([function])),
        ("reasoning_effort", json!("low")),
        ("verbosity", json!("low")),
        ("presence_penalty", json!(0.5)),
    ] {
        let refused = asking(field, value).await.expect(501);
        assert_eq!(refused["error"]["code"], "unsupported");
        assert_eq!(refused["error"]["param"], field);
    }
    for (field, value) in [
        ("response_format", json!({ "type": "text" })),
        ("tool_choice", json!("auto")),
        ("tool_choice", json!("none")),
        ("parallel_tool_calls", json!(true)),
    ] {
        asking(field, value).await.expect(200);
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_run_says_which_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "model_type": "mamba" }).to_string();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    let host = serve(folder.path().to_str().unwrap(), "").await;
    eventually("it is refused", async || {
        let models = host.admin().get("/models").await.expect(200).to_string();
        models.contains("mamba") && models.contains("are supported")
    })
    .await;
}

/// With what transformers 5.23 answers, greedy, from the same file in f32:
/// `AutoModelForCausalLM.from_pretrained(folder, gguf_file=...)`.
#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "tests/run says where it fetched the model"
)]
async fn smollm2_answers_as_it_does_in_transformers() {
    let path = std::env::var("MODEL_HOST_TEST_SMOLLM2")
        .expect("MODEL_HOST_TEST_SMOLLM2 is not set: run the tests by tests/run");
    let host = serve(&path, "dtype = \"f32\"\n").await.ready().await;
    let customer = host.customer().await;
    let expected: Value = serde_json::from_str(include_str!("fixtures/smollm2.json")).unwrap();
    for case in expected.as_array().unwrap() {
        let question = case["question"].as_str().unwrap();
        let chat = customer
            .post("/v1/chat/completions", ask(question, 24))
            .await
            .expect(200);
        assert_eq!(
            chat["choices"][0]["message"]["content"], case["answer"],
            "{question}"
        );
        assert_eq!(chat["usage"]["prompt_tokens"], case["prompt_tokens"]);
    }
}
