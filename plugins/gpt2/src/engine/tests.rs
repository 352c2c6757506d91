//! The engine with sequences that the plugin itself would not let in, and how
//! it shares out a step.

use super::*;
use crate::checkpoint::Checkpoint;
use crate::kernels::Dtype;
use crate::tests::fixture;

fn load() -> Arc<Loaded> {
    let folder = fixture("plain");
    let checkpoint = Checkpoint::read(|file| folder.join(file).into()).unwrap();
    Arc::new(checkpoint.load(Dtype::F32).unwrap())
}

#[test]
fn a_panic_fails_the_sequence_it_came_from_and_no_other() {
    let loaded = load();
    let engine = Engine::start(Arc::clone(&loaded), NonZeroUsize::new(2).unwrap()).unwrap();
    let begin = |prompt: &[u32]| {
        engine
            .begin(&loaded, prompt.to_vec(), 20, Sampler::Greedy)
            .unwrap()
    };
    let say = |mut tokens: Tokens| -> Vec<_> { (0..20).map(|_| tokens.next().unwrap()).collect() };
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
fn prompts_share_a_step_and_who_waits_for_a_token_gets_it() {
    let loaded = load();
    let shares = |unseen: &[usize]| {
        let mut receivers = Vec::new();
        let sequences = unseen.iter().map(|&unseen| {
            let (sender, receiver) = mpsc::channel(AHEAD);
            receivers.push(receiver);
            let prompt = vec![0; unseen];
            Sequence::new(prompt, loaded.model.cache(), 1, Sampler::Greedy, sender)
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
    assert_eq!(shares(&[1000]), [(1000, 128)]);
    // a short prompt beside a long one
    assert_eq!(shares(&[1000, 20]), [(1000, 108), (20, 20)]);
    assert_eq!(shares(&[20, 1000]), [(20, 20), (1000, 108)]);
    // less while others wait for their next token, who all get it
    assert_eq!(
        shares(&[1, 1000, 1, 1000, 1]),
        [(1, 1), (1000, 24), (1, 1), (1000, 8), (1, 1)]
    );
    // never more than a step takes, and the oldest always goes on
    let many = shares(&[500; 40]);
    assert_eq!(many.iter().map(|(_, tokens)| tokens).sum::<usize>(), 128);
    assert!(many[0].1 >= 64);
}
