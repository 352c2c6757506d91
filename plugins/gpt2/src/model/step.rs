//! One step of the model: rows of any number of sequences, side by side.

use super::{Cache, Model};
use crate::kernels::{Input, Level, Panel, Seen, Team, attend};

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
    /// What the heads found, row by row.
    attended: Vec<f32>,
    input: Input,
    /// Of each row that is predicted after.
    logits: Panel,
}

/// A row of a step.
struct Row {
    run: usize,
    position: usize,
    token: u32,
}

impl Workspace {
    /// A workspace for this team.
    pub(crate) fn new(team: Team) -> Self {
        Self {
            level: Level::best(),
            team,
            stream: Panel::default(),
            wide: Panel::default(),
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
        let logits = &self.logits;
        self.team.each(items, 1, |first, items| {
            let mut numbers = vec![0.0; vocab];
            for (index, item) in (first..).zip(items) {
                logits.read(index, 0, &mut numbers);
                work(item, &numbers);
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
        let mut rows = Vec::new();
        let mut predicted = Vec::new();
        for (index, run) in runs.iter_mut().enumerate() {
            let past = run.cache.len();
            run.cache.grow(run.tokens.len());
            assert!(!run.tokens.is_empty() && run.cache.len() <= self.config.positions());
            for (position, &token) in (past..).zip(run.tokens) {
                let is_last = position + 1 == run.cache.len();
                if run.predict == Predict::All || run.predict == Predict::Last && is_last {
                    predicted.push(rows.len());
                }
                rows.push(Row {
                    run: index,
                    position,
                    token,
                });
            }
        }
        self.embed(workspace, &rows);
        for layer in 0..self.blocks.len() {
            self.attend(workspace, &rows, runs, layer);
            self.feed_forward(workspace, layer);
        }
        self.predict(workspace, &predicted);
    }

    /// The stream's first rows: a token's embedding and its position's.
    fn embed(&self, workspace: &mut Workspace, rows: &[Row]) {
        let width = self.config.width();
        workspace
            .stream
            .resize(rows.len(), self.blocks[0].attention_out.weight.tiles());
        let mut numbers = vec![0.0; width];
        for (index, row) in rows.iter().enumerate() {
            self.tokens().output(row.token as usize, &mut numbers);
            let position = &self.positions[row.position * width..][..width];
            for (number, position) in numbers.iter_mut().zip(position) {
                *number += position;
            }
            workspace.stream.write(index, &numbers);
        }
    }

    /// Adds a block's attention to the stream.
    fn attend(&self, workspace: &mut Workspace, rows: &[Row], runs: &mut [Run<'_>], layer: usize) {
        let Workspace {
            level,
            team,
            stream,
            wide,
            attended,
            input,
            ..
        } = workspace;
        let (level, block, width) = (*level, &self.blocks[layer], self.config.width());
        block
            .qkv
            .weight
            .fill(level, team, rows.len(), input, |row, numbers| {
                stream.read(row, 0, numbers);
                block.attention_norm.apply(level, numbers);
            });
        wide.resize(rows.len(), block.qkv.weight.tiles());
        block.qkv.multiply(level, team, input, wide, None);

        let mut first = 0;
        let mut fillings = Vec::new();
        for run in runs.iter_mut() {
            fillings.extend(run.cache.last(run.tokens.len(), first));
            first += run.tokens.len();
        }
        team.each(&mut fillings, 1, |_, fillings| {
            for filling in fillings {
                filling.write(level, layer, wide, width);
            }
        });

        let (heads, runs) = (self.config.heads(), &*runs);
        let head_width = width / heads;
        let scale = self.config.attention_scale(layer) as f32;
        attended.resize(rows.len() * width, 0.0);
        team.each(attended, head_width, |first, attended| {
            let (mut query, mut scratch) = (vec![0.0; head_width], Vec::new());
            for (index, out) in (first..).zip(attended.chunks_exact_mut(head_width)) {
                let (row, head) = (index / heads, index % heads);
                wide.read(row, head * head_width, &mut query);
                for number in &mut query {
                    *number *= scale;
                }
                let Row { run, position, .. } = rows[row];
                let seen = Seen {
                    pages: runs[run].cache.pages(),
                    layer,
                    head,
                    positions: position + 1,
                };
                attend(level, &query, seen, &mut scratch, out);
            }
        });
        block
            .attention_out
            .weight
            .fill(level, team, rows.len(), input, |row, numbers| {
                numbers.copy_from_slice(&attended[row * width..][..width]);
            });
        block.attention_out.add_to(level, team, input, stream);
    }

    /// Adds a block's feed-forward part to the stream.
    fn feed_forward(&self, workspace: &mut Workspace, layer: usize) {
        let Workspace {
            level,
            team,
            stream,
            wide,
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
        block
            .inner
            .multiply(level, team, input, wide, Some(self.config.activation));
        block
            .inner_out
            .weight
            .fill(level, team, rows, input, |row, numbers| {
                wide.read(row, 0, numbers);
            });
        block.inner_out.add_to(level, team, input, stream);
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
        let zero = |_, lanes: &mut [[f32; 16]]| lanes.fill([0.0; 16]);
        self.head
            .multiply(*level, team, input, logits, zero, |_| ());
    }
}
