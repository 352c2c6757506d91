//! A sequence is the same to the bit, whatever is computed beside it.

use std::sync::Arc;
use std::thread;

use plugin_sdk::{Backend, Completion, ErrorKind, Event, Params};

use super::{Runner, answer, fixture, request, settings};
use crate::Transformer;
use crate::checkpoint::Checkpoint;
use crate::kernels::Dtype;
use crate::model::{Predict, Run};

/// One checkpoint of each kind.
const FAMILIES: [&str; 6] = ["odd", "llama", "mistral", "qwen2", "qwen3", "gemma3"];

fn open(dtype: &str) -> Transformer {
    open_family("plain", dtype, "true")
}

fn open_family(family: &str, dtype: &str, prefix_cache: &str) -> Transformer {
    let source = fixture(family);
    let pairs = [
        ("model_path", source.to_str().unwrap()),
        ("dtype", dtype),
        ("threads", "3"),
        ("prefix_cache", prefix_cache),
    ];
    Transformer::open(&settings(&pairs)).unwrap()
}

#[test]
fn logits_do_not_depend_on_the_batch_or_on_how_a_prompt_is_cut() {
    for family in FAMILIES {
        let folder = fixture(family);
        let checkpoint = Checkpoint::read(|file| folder.join(file).into()).unwrap();
        for dtype in Dtype::ALL {
            let runner = Runner::new(checkpoint.load(Some(dtype)).unwrap().model);
            does_not_depend(runner, &format!("{family} {dtype:?}"));
        }
    }
}

fn does_not_depend(mut runner: Runner, name: &str) {
    let prompts: Vec<Vec<u32>> = (0..8_u32)
        .map(|n| {
            (0..20 + n * 9)
                .map(|token| (token * 7 + n * 31) % 290)
                .collect()
        })
        .collect();
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| runner.logits(prompt, &mut runner.model.cache(), Predict::All))
        .collect();
    for piece in [1, 7, 13, 16, 50] {
        let mut caches: Vec<_> = prompts.iter().map(|_| runner.model.cache()).collect();
        let mut together = vec![Vec::new(); prompts.len()];
        while caches
            .iter()
            .zip(&prompts)
            .any(|(cache, prompt)| cache.len() < prompt.len())
        {
            let mut whose = Vec::new();
            let runs = caches.iter_mut().zip(&prompts).enumerate().filter_map(
                |(index, (cache, prompt))| {
                    // pieces of different lengths, so that they fall apart in time
                    let left = &prompt[cache.len()..];
                    let tokens = &left[..left.len().min(piece + index % 3)];
                    whose.extend(tokens.iter().map(|_| index));
                    (!tokens.is_empty()).then_some(Run {
                        tokens,
                        cache,
                        predict: Predict::All,
                    })
                },
            );
            let mut runs: Vec<_> = runs.collect();
            for (logits, index) in runner.step(&mut runs).into_iter().zip(whose) {
                together[index].push(logits);
            }
        }
        assert!(together == alone, "{name} in pieces of {piece}");
    }
}

#[test]
fn answers_are_the_same_alone_and_together() {
    let texts = [
        "The harbour",
        "a",
        "Once upon a time there was",
        "x y z",
        "海",
    ];
    let params = |number: usize| Params {
        max_tokens: Some(40),
        temperature: Some([0.0, 1.0, 0.7][number % 3]),
        top_p: (number % 2 == 1).then_some(0.9),
        seed: Some(number as u64),
        ..Params::default()
    };
    let say = move |model: &Transformer, number: usize| {
        let (text, reason, mut usage) = answer(model, texts[number % 5], params(number));
        // which of two equal prompts is the first is chance when they come together
        usage.cached_prompt_tokens = 0;
        (text, reason, usage)
    };
    for dtype in ["f32", "q8", "w8a16", "q4"] {
        let model = Arc::new(open(dtype));
        let alone: Vec<_> = (0..12).map(|number| say(&model, number)).collect();
        let threads: Vec<_> = (0..12)
            .map(|number| {
                let model = Arc::clone(&model);
                thread::spawn(move || say(&model, number))
            })
            .collect();
        let together: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(together, alone, "{dtype}");
    }
}

#[test]
fn what_was_read_before_changes_no_answer() {
    let params = Params {
        max_tokens: Some(30),
        temperature: Some(0.0),
        ..Params::default()
    };
    let text = "abcdefghij".repeat(5);
    // the same, one that goes on, and one that ends within a page and goes another way
    let prompts = [
        &*text,
        &format!("{text} klm"),
        &format!("{} x", &text[..40]),
    ];
    for family in FAMILIES {
        for dtype in Dtype::ALL.map(Dtype::name) {
            let [alone, sharing] =
                ["false", "true"].map(|sharing| open_family(family, dtype, sharing));
            answer(&sharing, &text, params.clone());
            for prompt in prompts {
                let (expected, _, none) = answer(&alone, prompt, params.clone());
                let (said, _, some) = answer(&sharing, prompt, params.clone());
                assert_eq!(said, expected, "{family} {dtype} {prompt}");
                assert_eq!(none.cached_prompt_tokens, 0);
                assert!(some.cached_prompt_tokens >= 32, "{family}: {some:?}");
            }
        }
    }
}

#[test]
fn an_answer_that_nobody_reads_holds_up_no_other() {
    let model = open("f32");
    let long = Params {
        max_tokens: Some(100),
        temperature: Some(0.0),
        ..Params::default()
    };
    // more tokens than the engine makes ahead, and none is read yet
    let mut unread = model.generate(request("a", long.clone())).unwrap();
    for _ in 0..3 {
        assert_eq!(
            answer(&model, "The harbour", long.clone())
                .2
                .completion_tokens,
            100
        );
    }
    // the one in the queue goes on where it was
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Finish(_))) {
        events = unread.next().unwrap();
    }
    let Some(Event::Finish(finish)) = events.pop() else {
        panic!("the end")
    };
    assert_eq!(finish.usage.completion_tokens, 100);
}

#[test]
fn an_answer_goes_on_when_its_model_is_dropped_and_ends_when_it_is_dropped_itself() {
    let model = open("q8");
    let params = Params {
        max_tokens: Some(100),
        temperature: Some(0.0),
        ..Params::default()
    };
    let mut first = model
        .generate(request("The harbour", params.clone()))
        .unwrap();
    drop(model.generate(request("a", params)).unwrap());
    drop(model);
    let mut steps = 0;
    while !matches!(first.next().unwrap().last(), Some(Event::Finish(_))) {
        steps += 1;
    }
    assert_eq!(steps, 99);
}

#[test]
fn threads_are_a_number() {
    for threads in ["0", "two", "1000000"] {
        let error = Transformer::open(&settings(&[("threads", threads)])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest, "{threads}");
    }
}
