//! One step of the model: rows of any number of sequences, side by side.

use std::ops::Range;

use super::block::{Affine, Norm};
use super::{Cache, Model};
use crate::config::Activation;
use crate::kernels::{
    Base, Input, Level, PAGE, Panel, Scratch, Seen, Team, attend, gelu_tanh_gate, silu_gate,
};

/// The next tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// At least one.
    pub(crate) tokens: &'a [u32],
    /// The sequence so far; the tokens are added to it.
    pub(crate) cache: &'a mut Cache,
    /// After which of the tokens to predict.
    pub(crate) predict: Predict,
}

/// After which tokens of a [`Run`] the next one is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Predict {
    /// None: the rest of a prompt is still to come.
    None,
    /// The last.
    Last,
    /// Every one.
    All,
}

/// What steps need beside the weights: threads, and room for numbers that is
/// used again and again.
#[derive(Debug)]
pub(crate) struct Workspace {
    level: Level,
    team: Team,
    /// The residual stream, a row for each token.
    stream: Panel,
    /// Queries, keys and values, or the feed-forward part's inner layer.
    wide: Panel,
    /// What a half of a block found, where it is normalized before it is added.
    found: Panel,
    /// What the heads found: of the first one all rows, then of the next.
    attended: Vec<f32>,
    input: Input,
    /// Of each row that is predicted after.
    logits: Panel,
}

/// A row of a step.
struct Row {
    position: usize,
    token: u32,
}

/// Rows of one run whose positions are in the same page.
struct Span {
    run: usize,
    rows: Range<usize>,
    /// Of the first row.
    position: usize,
}

impl Workspace {
    /// A workspace for this team.
    pub(crate) fn new(team: Team) -> Self {
        Self {
            level: Level::best(),
            team,
            stream: Panel::default(),
            wide: Panel::default(),
            found: Panel::default(),
            attended: Vec::new(),
            input: Input::default(),
            logits: Panel::default(),
        }
    }

    /// Has the team work on the predictions of the last step: `work` gets an
    /// item, in the order of the predictions, and the logits of the first
    /// `vocab` tokens.
    pub(crate) fn for_predictions<T: Send>(
        &mut self,
        items: &mut [T],
        vocab: usize,
        work: impl Fn(&mut T, &[f32]) + Sync,
    ) {
        let mut items: Vec<_> = items.iter_mut().map(|item| (item, 1)).collect();
        self.for_runs(&mut items, vocab, |item, logits| {
            work(item, logits);
            false
        });
    }

    /// As [`Self::for_predictions`], with items that have so many predictions
    /// each: `work` gets them one after the other while it returns true.
    pub(crate) fn for_runs<T: Send>(
        &mut self,
        items: &mut [(T, usize)],
        vocab: usize,
        work: impl Fn(&mut T, &[f32]) -> bool + Sync,
    ) {
        let logits = &self.logits;
        let firsts = items.iter().scan(0, |next, (_, count)| {
            let first = *next;
            *next += count;
            Some(first)
        });
        let firsts: Vec<usize> = firsts.collect();
        self.team.each(items, 1, |index, items| {
            let mut numbers = vec![0.0; vocab];
            for (first, (item, count)) in firsts[index..].iter().zip(items) {
                let mut rows = *first..first + *count;
                let _ = rows.all(|row| {
                    logits.read(row, 0, &mut numbers);
                    work(item, &numbers)
                });
            }
        });
    }
}

impl Model {
    /// Takes the runs through the model together; predictions are left in the
    /// workspace, in the order of their rows. A row's numbers are the same to
    /// the bit whatever the other rows are, and however a sequence was cut into
    /// runs.
    ///
    /// # Panics
    /// When a run has no token or one that is not in the vocabulary, or goes
    /// beyond the last position.
    pub(crate) fn step(&self, workspace: &mut Workspace, runs: &mut [Run<'_>]) {
        let (mut rows, mut spans) = (Vec::new(), Vec::<Span>::new());
        let mut predicted = Vec::new();
        for (index, run) in runs.iter_mut().enumerate() {
            let past = run.cache.len();
            run.cache.grow(run.tokens.len());
            assert!(!run.tokens.is_empty() && run.cache.len() <= self.config.context);
            for (position, &token) in (past..).zip(run.tokens) {
                let is_last = position + 1 == run.cache.len();
                if run.predict == Predict::All || run.predict == Predict::Last && is_last {
                    predicted.push(rows.len());
                }
                match spans.last_mut() {
                    Some(span) if span.run == index && position % PAGE != 0 => span.rows.end += 1,
                    _ => spans.push(Span {
                        run: index,
                        rows: rows.len()..rows.len() + 1,
                        position,
                    }),
                }
                rows.push(Row { position, token });
            }
        }
        self.embed(workspace, &rows);
        for layer in 0..self.blocks.len() {
            self.attend(workspace, &spans, runs, layer);
            self.feed_forward(workspace, layer);
        }
        self.predict(workspace, &predicted);
    }

    /// The stream's first rows: a token's embedding, and its position's if it has
    /// one.
    fn embed(&self, workspace: &mut Workspace, rows: &[Row]) {
        let width = self.config.width;
        workspace
            .stream
            .resize(rows.len(), self.blocks[0].attention_out.weight.tiles());
        let mut numbers = vec![0.0; width];
        for (index, row) in rows.iter().enumerate() {
            self.tokens().output(row.token as usize, &mut numbers);
            if self.config.has_positions {
                let position = &self.positions[row.position * width..][..width];
                for (number, position) in numbers.iter_mut().zip(position) {
                    *number += position;
                }
            }
            if self.config.embedding_scale != 1.0 {
                for number in &mut numbers {
                    *number *= self.config.embedding_scale;
                }
            }
            workspace.stream.write(index, &numbers);
        }
    }

    /// A head's query or key as it is compared: normalized and turned by its
    /// position.
    fn ready(
        &self,
        level: Level,
        (layer, position): (usize, usize),
        norm: Option<&Norm>,
        head: &mut [f32],
    ) {
        if let Some(norm) = norm {
            norm.apply(level, head);
        }
        if let Some(rotary) = self.config.layers[layer].rotary {
            self.turns[rotary].apply(level, position, head);
        }
    }

    /// Adds a block's attention to the stream.
    fn attend(
        &self,
        workspace: &mut Workspace,
        spans: &[Span],
        runs: &mut [Run<'_>],
        layer: usize,
    ) {
        let Workspace {
            level,
            team,
            stream,
            wide,
            found,
            attended,
            input,
            ..
        } = workspace;
        let (level, block, config) = (*level, &self.blocks[layer], &self.config);
        let (width, keys, rows) = (config.queries(), config.keys(), stream.rows());
        block
            .qkv
            .weight
            .fill(level, team, rows, input, |row, numbers| {
                stream.read(row, 0, numbers);
                block.attention_norm.apply(level, numbers);
            });
        wide.resize(rows, block.qkv.weight.tiles());
        block.qkv.multiply(level, team, input, wide, None);

        let mut first = 0;
        let mut fillings = Vec::new();
        for run in runs.iter_mut() {
            fillings.extend(run.cache.last(run.tokens.len(), first));
            first += run.tokens.len();
        }
        let head_width = config.head_width;
        team.each(&mut fillings, 1, |_, fillings| {
            for filling in fillings {
                filling.write(level, layer, wide, (width, keys), |position, keys| {
                    for head in keys.chunks_exact_mut(head_width) {
                        self.ready(level, (layer, position), block.key_norm.as_ref(), head);
                    }
                });
            }
        });

        let runs = &*runs;
        // so many heads of queries look up the same keys and values
        let sharing = config.heads / config.kv_heads;
        let own = &config.layers[layer];
        attended.resize(rows * width, 0.0);
        // a head's spans grow in cost, so each thread gets spans of all lengths
        let mut left = &mut attended[..];
        let mut lookups = Vec::with_capacity(config.heads * spans.len());
        for head in 0..config.heads {
            for span in spans {
                let (out, later) = left.split_at_mut(span.rows.len() * head_width);
                lookups.push((head, span, out));
                left = later;
            }
        }
        team.each(&mut lookups, 1, |_, lookups| {
            let (mut queries, mut sees) = (Vec::new(), Vec::new());
            let mut scratch = Scratch::default();
            for (head, span, out) in lookups {
                queries.resize(out.len(), 0.0);
                sees.clear();
                let rows = span.rows.clone().zip(queries.chunks_exact_mut(head_width));
                for (position, (row, query)) in (span.position..).zip(rows) {
                    wide.read(row, *head * head_width, query);
                    let norm = block.query_norm.as_ref();
                    self.ready(level, (layer, position), norm, query);
                    for number in query {
                        *number *= own.scale;
                    }
                    let window = own.window.unwrap_or(usize::MAX);
                    sees.push((position + 1).saturating_sub(window)..position + 1);
                }
                let seen = Seen {
                    pages: runs[span.run].cache.pages(),
                    layer,
                    head: *head / sharing,
                };
                attend(level, &queries, &sees, seen, &mut scratch, out);
            }
        });
        let out = &block.attention_out;
        out.weight.fill(level, team, rows, input, |row, numbers| {
            for (head, numbers) in numbers.chunks_exact_mut(head_width).enumerate() {
                let at = (head * rows + row) * head_width;
                numbers.copy_from_slice(&attended[at..][..head_width]);
            }
        });
        let post = block.attention_post.as_ref();
        add(level, team, (out, post), input, found, stream);
    }

    /// Adds a block's feed-forward part to the stream.
    fn feed_forward(&self, workspace: &mut Workspace, layer: usize) {
        let Workspace {
            level,
            team,
            stream,
            wide,
            found,
            input,
            ..
        } = workspace;
        let (level, block, rows) = (*level, &self.blocks[layer], stream.rows());
        block
            .inner
            .weight
            .fill(level, team, rows, input, |row, numbers| {
                stream.read(row, 0, numbers);
                block.inner_norm.apply(level, numbers);
            });
        wide.resize(rows, block.inner.weight.tiles());
        let (inner, activation) = (self.config.inner, self.config.activation);
        let is_gated = self.config.is_gated;
        let now = (!is_gated).then_some(activation);
        block.inner.multiply(level, team, input, wide, now);
        let out = &block.inner_out;
        out.weight.fill(level, team, rows, input, |row, numbers| {
            wide.read(row, 0, numbers);
            if is_gated {
                let mut gated = vec![0.0; inner];
                wide.read(row, inner, &mut gated);
                match activation {
                    Activation::GeluTanh => gelu_tanh_gate(level, numbers, &gated),
                    _ => silu_gate(level, numbers, &gated),
                }
            }
        });
        let post = block.inner_post.as_ref();
        add(level, team, (out, post), input, found, stream);
    }

    /// Logits after the rows that are predicted after.
    fn predict(&self, workspace: &mut Workspace, predicted: &[usize]) {
        let Workspace {
            level,
            team,
            stream,
            input,
            logits,
            ..
        } = workspace;
        if predicted.is_empty() {
            return;
        }
        self.head
            .fill(*level, team, predicted.len(), input, |index, numbers| {
                stream.read(predicted[index], 0, numbers);
                self.norm.apply(*level, numbers);
            });
        logits.resize(predicted.len(), self.head.tiles());
        let nothing = Base {
            bias: &[],
            is_sum: false,
        };
        self.head
            .multiply(*level, team, input, nothing, logits, |_| ());
    }
}

/// Adds the product of the rows in `input`, normalized if there is a norm, to the
/// stream; `found` is room for it.
fn add(
    level: Level,
    team: &mut Team,
    (out, norm): (&Affine, Option<&Norm>),
    input: &Input,
    found: &mut Panel,
    stream: &mut Panel,
) {
    let Some(norm) = norm else {
        out.add_to(level, team, input, stream);
        return;
    };
    let rows = stream.rows();
    found.resize(rows, out.weight.tiles());
    out.multiply(level, team, input, found, None);
    let width = out.weight.outputs();
    let (mut numbers, mut sums) = (vec![0.0; width], vec![0.0; width]);
    for row in 0..rows {
        found.read(row, 0, &mut numbers);
        norm.apply(level, &mut numbers);
        stream.read(row, 0, &mut sums);
        for (sum, number) in sums.iter_mut().zip(&numbers) {
            *sum += number;
        }
        stream.write(row, &sums);
    }
}
