//! What more sequences and longer contexts do to the rate of all together and to
//! the time between two tokens of one.

use std::fmt::Write;
use std::path::Path;

use crate::streams::{gaps, open, rate, together};

/// Sequences at once.
const SEQUENCES: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Positions that each has in the end.
const CONTEXTS: [usize; 3] = [128, 512, 1024];
/// The last tokens of a context, which are measured.
const LAST: usize = 64;
const ROUNDS: usize = 3;
/// Of the lines, and of what is written beside them.
const COLORS: [&str; 3] = ["#0b6e4f", "#c05621", "#5a4fcf"];

/// What was measured with so many sequences in such a context.
struct Point {
    /// Tokens a second of all together: the median of the rounds.
    rate: f64,
    /// Milliseconds between two tokens of one, half of the time and all but 1 %.
    median: f64,
    p99: f64,
}

/// Prints a table and writes a plot to the file `plot`.
pub fn measure(checkpoint: &Path, dtype: &str, plot: &Path) {
    let mut lines = Vec::new();
    for context in CONTEXTS {
        // of GPT-2 small, 16 positions take 576 KiB at most; one page more each
        let mib = SEQUENCES[5] * (context / 16 + 1) * 576 * 2 / 1024;
        let model = open(checkpoint, dtype, mib, true);
        // all but the last token of a prompt is in full pages, and kept: so that all
        // decode from the first step on
        let prompt = context - LAST + 1;
        together(&model, SEQUENCES[5], prompt, 1);
        let mut line = Vec::new();
        for sequences in SEQUENCES {
            let (mut rates, mut times) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let streams = together(&model, sequences, prompt, LAST as u32 - 1);
                rates.push(rate(&streams));
                times.extend(gaps(&streams));
            }
            let point = Point {
                rate: at(&mut rates, 0.5),
                median: at(&mut times, 0.5),
                p99: at(&mut times, 0.99),
            };
            line.push(point);
        }
        lines.push(line);
    }
    print!("{}", table(dtype, &lines));
    std::fs::write(plot, svg(dtype, &lines)).expect("the plot");
}

/// A row for so many sequences, and of each context the rate, and the median and p99 of
/// the times.
fn table(dtype: &str, lines: &[Vec<Point>]) -> String {
    let titles = CONTEXTS.map(|context| format!(" {context} positions: tokens/s | ms, p99 |"));
    let mut table = format!("| sequences in `{dtype}` |{}\n", titles.concat());
    table += &format!("| --- |{}\n", " --- |".repeat(2 * CONTEXTS.len()));
    for (index, sequences) in SEQUENCES.iter().enumerate() {
        table += &format!("| {sequences} |");
        for line in lines {
            let Point { rate, median, p99 } = line[index];
            table += &format!(" {rate:.0} | {median:.1}, {p99:.1} |");
        }
        table.push('\n');
    }
    table
}

/// What such a part of the numbers is not above.
fn at(numbers: &mut [f64], part: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[((numbers.len() - 1) as f64 * part).round() as usize]
}

fn svg(dtype: &str, lines: &[Vec<Point>]) -> String {
    let rates = panel(
        40,
        "tokens a second, all sequences together",
        lines,
        |point| point.rate,
    );
    let times = panel(
        480,
        "ms between two tokens of one, median",
        lines,
        |point| point.median,
    );
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 960 340' \
         font-family='sans-serif' font-size='12'>\n\
         <title>GPT-2 small in {dtype}: cost by sequences at once and positions of each</title>\n\
         <rect width='960' height='340' fill='white'/>\n{rates}{times}</svg>\n"
    )
}

/// A line for each context, from `left` on.
fn panel(left: usize, title: &str, lines: &[Vec<Point>], value: impl Fn(&Point) -> f64) -> String {
    let most = lines.iter().flatten().map(&value).fold(1.0, f64::max);
    // numbers on the axis are whole steps of 1, 2 or 5 and noughts
    let step = (0..6)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
        .find(|step| most / step <= 6.0)
        .unwrap_or(most);
    let x = |index: usize| left + index * 60;
    let y = |value: f64| 280.0 - value / most * 230.0;
    let mut svg = format!(
        "<text x='{left}' y='24'>{title}</text>\n\
         <path d='M{left} 40V280H{}' fill='none' stroke='#888'/>\n\
         <text x='{}' y='322' text-anchor='middle'>sequences at once</text>\n",
        x(5) + 10,
        left + 150
    );
    let mut write = |text: String| svg.write_str(&text).expect("a text takes it");
    for number in (0..)
        .map(|n| f64::from(n) * step)
        .take_while(|&number| number <= most)
    {
        let (to, at) = (x(5) + 10, y(number));
        write(format!(
            "<path d='M{left} {at:.0}H{to}' stroke='#ddd'/>\n\
             <text x='{}' y='{:.0}' text-anchor='end'>{number}</text>\n",
            left - 4,
            at + 4.0
        ));
    }
    for (index, sequences) in SEQUENCES.iter().enumerate() {
        let at = x(index);
        write(format!(
            "<text x='{at}' y='298' text-anchor='middle'>{sequences}</text>\n"
        ));
    }
    for ((line, context), color) in lines.iter().zip(CONTEXTS).zip(COLORS) {
        let points = line.iter().map(&value).enumerate();
        let points: Vec<_> = points
            .map(|(index, value)| format!("{},{:.1}", x(index), y(value)))
            .collect();
        let last = line.last().map_or(0.0, &value);
        write(format!(
            "<polyline fill='none' stroke='{color}' stroke-width='2' points='{}'/>\n\
             <text x='{}' y='{:.0}' fill='{color}'>{context} positions</text>\n",
            points.join(" "),
            x(5) + 14,
            y(last) + 4.0
        ));
    }
    svg
}
