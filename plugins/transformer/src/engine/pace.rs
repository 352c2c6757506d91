//! How much of a prompt a step reads while others wait for their next token.
//!
//! Each row more makes all of them wait longer; how much longer depends on the
//! model, on the processor and on how many there are, so it is learned from the
//! steps themselves.

use std::time::Duration;

/// How many times as long a step may take for the prompts that it reads.
const SLOWDOWN: f64 = 2.2;
/// Rows of prompts at least, so that a prompt comes to its end, and at most.
const LEAST: usize = 8;
const MOST: usize = 256;
/// Rows that the kernels take together: one more costs about as much as as many.
const TOGETHER: usize = 16;
/// Until a step has shown what a row costs.
const FIRST: usize = 32;
/// What a step counts beside the one after it.
const KEPT: f64 = 0.97;

/// A step's time by the prompts' rows in it, `fixed + row · rows`: the line of
/// least squares through the last steps, of which the latest count most.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Sums over the steps: of 1, of rows, of their squares, of seconds, and of
    /// rows times seconds.
    steps: f64,
    rows: f64,
    squares: f64,
    seconds: f64,
    products: f64,
}

impl Pace {
    /// A step in which somebody waited for their next token had so many rows of
    /// prompts, and took this long.
    pub(super) fn saw(&mut self, rows: usize, time: Duration) {
        let (rows, seconds) = (rows as f64, time.as_secs_f64());
        let sums = [
            (&mut self.steps, 1.0),
            (&mut self.rows, rows),
            (&mut self.squares, rows * rows),
            (&mut self.seconds, seconds),
            (&mut self.products, rows * seconds),
        ];
        for (sum, one) in sums {
            *sum = *sum * KEPT + one;
        }
    }

    /// How many rows of prompts the next such step may have, beside `awaited` others.
    pub(super) fn rows(&self, awaited: usize) -> usize {
        let rows = self.bearable();
        // a part of what goes together is left out if there is more
        let spare = (awaited + rows) % TOGETHER;
        match rows.saturating_sub(spare) {
            ..LEAST => rows,
            whole => whole,
        }
    }

    /// How many there may be by what a row costs.
    fn bearable(&self) -> usize {
        let spread = self.steps * self.squares - self.rows * self.rows;
        let row = (self.steps * self.products - self.rows * self.seconds) / spread;
        let fixed = (self.seconds - row * self.rows) / self.steps;
        let rows = (SLOWDOWN - 1.0) * fixed / row;
        // steps that are alike say nothing, and noise can say that rows are for nothing
        if row > 0.0 && fixed > 0.0 && rows.is_finite() {
            (rows as usize).clamp(LEAST, MOST)
        } else {
            FIRST
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows it steps with prompts of `rows` each now and then.
    fn show(pace: &mut Pace, steps: usize, rows: usize, time: impl Fn(usize) -> f64) {
        for step in 0..steps {
            let rows = if step % 5 == 0 { rows } else { 0 };
            pace.saw(rows, Duration::from_secs_f64(time(rows)));
        }
    }

    #[test]
    fn a_step_becomes_so_much_longer_and_no_more() {
        let mut pace = Pace::default();
        assert_eq!(pace.bearable(), FIRST);
        // none had a prompt yet
        show(&mut pace, 10, 0, |_| 0.004);
        assert_eq!(pace.bearable(), FIRST);
        for (fixed, row) in [(0.004, 0.000_15), (0.012, 0.000_15), (0.004, 0.000_3)] {
            let time = |rows| fixed + row * rows as f64;
            let chosen = pace.bearable();
            show(&mut pace, 400, chosen, time);
            let rows = pace.bearable();
            assert!(time(rows) <= fixed * SLOWDOWN, "{rows}");
            assert!(time(rows + 2) >= fixed * SLOWDOWN, "{rows}");
        }
    }

    #[test]
    fn rows_go_together_where_there_are_enough_of_them() {
        let pace = Pace::default();
        let rows = [1, 3, 16, 23, 30, 70].map(|awaited| pace.rows(awaited));
        assert_eq!(rows, [31, 29, 32, 25, 18, 26]);
        let mut pace = Pace::default();
        show(&mut pace, 50, 16, |rows| 0.004 + 0.01 * rows as f64);
        assert_eq!(pace.rows(4), LEAST);
    }

    #[test]
    fn a_prompt_is_read_however_slow_and_however_fast_that_is() {
        for (row, expected) in [(0.01, LEAST), (0.000_000_1, MOST)] {
            let mut pace = Pace::default();
            show(&mut pace, 50, 16, |rows| 0.004 + row * rows as f64);
            assert_eq!(pace.bearable(), expected);
        }
        // longer prompts in shorter steps: that is noise
        let mut pace = Pace::default();
        show(
            &mut pace,
            50,
            16,
            |rows| if rows == 0 { 0.004 } else { 0.003 },
        );
        assert_eq!(pace.bearable(), FIRST);
    }
}
