//! The engine with sequences that the plugin itself would not let in, and how
//! it shares out a step.

use super::*;
use crate::checkpoint::Checkpoint;
use crate::kernels::Dtype;
use crate::sampling;
use crate::source::Source;
use crate::tests::fixture;
use plugin_sdk::Params;

fn load() -> Arc<Loaded> {
    let folder = fixture("plain");
    let checkpoint = Checkpoint::read(|file| folder.join(file).into()).unwrap();
    Arc::new(checkpoint.load(Some(Dtype::F32)).unwrap())
}

fn start(loaded: &Arc<Loaded>, pages: usize, is_sharing: bool) -> Engine {
    start_with(loaded, pages, is_sharing, true)
}

fn start_with(loaded: &Arc<Loaded>, pages: usize, is_sharing: bool, is_guessing: bool) -> Engine {
    let options = Options {
        name: "test".to_owned(),
        threads: NonZeroUsize::new(2).unwrap(),
        pages,
        is_sharing,
        is_guessing,
    };
    Engine::start(Arc::clone(loaded), &options).unwrap()
}

fn say(mut tokens: Tokens) -> Vec<u32> {
    (0..20).map(|_| tokens.next().unwrap()).collect()
}

#[test]
fn sequences_wait_for_room_and_say_what_they_would_have_said() {
    let loaded = load();
    let prompts: Vec<Vec<u32>> = (0..12_u32)
        .map(|n| (0..30 + n * 5).map(|k| (k * 3 + n / 3) % 300).collect())
        .collect();
    let all = |pages: usize, is_sharing: bool| -> Vec<_> {
        let engine = start(&loaded, pages, is_sharing);
        let begun: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let sampler = Sampler::Greedy;
                engine.begin(&loaded, prompt.clone(), 20, sampler).unwrap()
            })
            .collect();
        begun.into_iter().map(say).collect()
    };
    let alone = all(1000, false);
    // the first: room for one of the longest at a time
    for (pages, is_sharing) in [(8, false), (8, true), (20, true), (1000, true)] {
        assert!(all(pages, is_sharing) == alone, "{pages} {is_sharing}");
    }
}

/// A trained model: it repeats what it reads.
fn trained() -> Arc<Loaded> {
    let [source] = &Source::list("embedded").unwrap()[..] else {
        panic!("one source")
    };
    Arc::new(source.load(None, Some(Dtype::Q8)).unwrap().0)
}

#[test]
fn guessing_changes_no_answer() {
    let loaded = trained();
    let prompts = [
        "one two three one two three one two",
        "a b a b a b",
        "The sea",
    ]
    .map(|text| loaded.tokenizer.encode(text).unwrap());
    let sampler = |number: usize| {
        let params = Params {
            temperature: Some([0.0, 0.3, 1.0][number % 3]),
            seed: Some(number as u64),
            ..Params::default()
        };
        sampling::sampler(&params, loaded.tokenizer.size()).unwrap()
    };
    let all = |is_guessing: bool, together: usize| -> Vec<Vec<u32>> {
        let engine = start_with(&loaded, 1000, true, is_guessing);
        let numbers: Vec<_> = (0..9).collect();
        let said = numbers.chunks(together).flat_map(|numbers| {
            let begun = numbers.iter().map(|&number| {
                let prompt = prompts[number / 3].clone();
                engine.begin(&loaded, prompt, 60, sampler(number)).unwrap()
            });
            let begun: Vec<_> = begun.collect();
            begun.into_iter().map(|mut tokens| {
                let said = (0..60).map(|_| tokens.next().unwrap());
                said.take_while(|token| !loaded.end_tokens.contains(token))
                    .collect()
            })
        });
        said.collect()
    };
    let plain = all(false, 1);
    for together in [1, 2, 9] {
        assert!(all(true, together) == plain, "{together} together");
    }
}

#[test]
fn a_right_guess_spares_a_step() {
    let loaded = trained();
    let (sender, mut said) = mpsc::channel(AHEAD);
    let prompt = "one two three one two three one two three one two";
    let prompt = loaded.tokenizer.encode(prompt).unwrap();
    let cache = loaded.model.cache();
    let lookup = Some(Lookup::default());
    let sequence = Sequence::new(prompt, cache, 60, Sampler::Greedy, lookup, sender);
    let mut sequences = [sequence];
    let mut workspace = Workspace::new(Team::new(NonZeroUsize::MIN).unwrap());
    let (mut steps, mut tokens, mut right) = (0, 0, 0);
    while !sequences[0].is_over() {
        step(&loaded, &mut workspace, &mut sequences);
        steps += 1;
        right += sequences[0].take_guesses()[0];
        while let Ok(token) = said.try_recv() {
            token.unwrap();
            tokens += 1;
        }
    }
    assert!(right > 3, "{right}");
    assert_eq!(tokens, steps + right);
}

#[test]
fn what_a_prompt_begins_with_is_found_again_until_others_need_the_room() {
    let loaded = load();
    let engine = start(&loaded, 12, true);
    let prompt = |first: u32| -> Vec<u32> { (0..40).map(|k| (first + k) % 300).collect() };
    let cached = |prompt: Vec<u32>| {
        let mut tokens = engine.begin(&loaded, prompt, 20, Sampler::Greedy).unwrap();
        let said: Vec<_> = (0..20).map(|_| tokens.next().unwrap()).collect();
        (tokens.cached(), said)
    };
    let (nothing, said) = cached(prompt(0));
    assert_eq!(nothing, 0);
    // whole pages of 16, and never the whole prompt
    assert_eq!(cached(prompt(0)), (32, said.clone()));
    assert_eq!(cached(prompt(0)[..32].to_vec()).0, 16);
    // what was answered is there as well
    let conversation = [prompt(0), said.clone()].concat();
    assert_eq!(cached(conversation).0, 48);
    assert_eq!(cached([vec![7], prompt(0)].concat()).0, 0);
    // others take the room of what was used least lately
    for first in [50, 100, 150, 200] {
        assert_eq!(cached(prompt(first)).0, 0);
    }
    assert_eq!(cached(prompt(0)), (0, said));
}

#[test]
fn a_panic_fails_the_sequence_it_came_from_and_no_other() {
    let loaded = load();
    let engine = start(&loaded, 100, true);
    let begin = |prompt: &[u32]| {
        engine
            .begin(&loaded, prompt.to_vec(), 20, Sampler::Greedy)
            .unwrap()
    };
    let alone = say(begin(&[1, 2, 3]));
    for _ in 0..10 {
        let before = begin(&[1, 2, 3]);
        // no such token: the embedding has no row for it
        let mut broken = begin(&[1, u32::MAX, 3]);
        let after = begin(&[1, 2, 3]);
        let error = broken.next().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert_eq!(say(before), alone);
        assert_eq!(say(after), alone);
    }
}

#[test]
fn what_a_panic_left_uncomputed_is_not_found_again() {
    let loaded = load();
    let engine = start(&loaded, 100, true);
    let begin = |engine: &Engine, prompt: Vec<u32>| {
        engine.begin(&loaded, prompt, 20, Sampler::Greedy).unwrap()
    };
    // a whole page before the token that there is not
    let mut broken = begin(&engine, [vec![1; 16], vec![u32::MAX]].concat());
    broken.next().unwrap_err();
    let mut after = begin(&engine, vec![1; 20]);
    let first = after.next().unwrap();
    assert_eq!(after.cached(), 0);
    let said: Vec<_> = (1..20).map(|_| after.next().unwrap()).collect();
    let fresh = say(begin(&start(&loaded, 100, true), vec![1; 20]));
    assert_eq!([vec![first], said].concat(), fresh);
}

#[test]
fn a_sequence_that_waits_for_room_ends_when_it_is_cancelled() {
    let loaded = load();
    // room for one: 100 tokens are seven pages of 16
    let engine = start(&loaded, 8, true);
    let begin = || {
        let prompt = vec![1; 10];
        engine.begin(&loaded, prompt, 90, Sampler::Greedy).unwrap()
    };
    let (mut first, mut waiting) = (begin(), begin());
    let cancel = waiting.canceller();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiting.next());
        first.next().unwrap();
        cancel();
        // before the first has ended: nobody reads its tokens, and it is held up
        assert!(waits.join().unwrap().is_err());
    });
    assert!((1..20).all(|_| first.next().is_ok()));
}

#[test]
fn prompts_share_a_step_and_who_waits_for_a_token_gets_it() {
    let loaded = load();
    let shares = |unseen: &[usize]| {
        let mut receivers = Vec::new();
        let sequences = unseen.iter().map(|&unseen| {
            let (sender, receiver) = mpsc::channel(AHEAD);
            receivers.push(receiver);
            let prompt = vec![0; unseen];
            Sequence::new(
                prompt,
                loaded.model.cache(),
                1,
                Sampler::Greedy,
                None,
                sender,
            )
        });
        let mut sequences: Vec<_> = sequences.collect();
        let planned = plan(&mut sequences);
        planned
            .iter()
            .map(|(sequence, tokens)| (sequence.unseen(), *tokens))
            .collect::<Vec<_>>()
    };
    // whole, when there is nothing else
    assert_eq!(shares(&[100]), [(100, 100)]);
    assert_eq!(shares(&[1000]), [(1000, 256)]);
    // a short prompt beside a long one
    assert_eq!(shares(&[1000, 20]), [(1000, 236), (20, 20)]);
    assert_eq!(shares(&[20, 1000]), [(20, 20), (1000, 236)]);
    // less while others wait for their next token, who all get it
    assert_eq!(
        shares(&[1, 1000, 1, 1000, 1]),
        [(1, 1), (1000, 24), (1, 1), (1000, 8), (1, 1)]
    );
    // never more than a step takes, and the oldest always goes on
    let many = shares(&[500; 40]);
    assert_eq!(many.iter().map(|(_, tokens)| tokens).sum::<usize>(), 256);
    assert!(many[0].1 >= 128);
}
