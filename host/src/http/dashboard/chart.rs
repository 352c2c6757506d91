//! Requests over time: bars drawn on the server, and the same as a table.

use maud::{Markup, html};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};

use super::figures::{count, day, hour};
use super::usage;
use crate::store::usage::{PeriodTotals, Totals};

/// How far back, and in which steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Range {
    /// 24 hours.
    #[default]
    Day,
    /// 30 days.
    Month,
}

impl Range {
    /// As the query has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Self::Day => "24 hours",
            Self::Month => "30 days",
        }
    }

    /// How long one bar is.
    pub fn period(self) -> Duration {
        match self {
            Self::Day => Duration::HOUR,
            Self::Month => Duration::DAY,
        }
    }

    /// Bars, and each how many of them has a label.
    fn bars(self) -> (u16, u16) {
        match self {
            Self::Day => (24, 6),
            Self::Month => (30, 10),
        }
    }

    fn label(self, start: OffsetDateTime) -> String {
        match self {
            Self::Day => hour(start),
            Self::Month => day(start),
        }
    }

    /// When the first bar begins; the last one is under way.
    pub fn since(self, now: OffsetDateTime) -> OffsetDateTime {
        let period = self.period().whole_seconds();
        let into = Duration::seconds(now.unix_timestamp().rem_euclid(period));
        let current = now.replace_nanosecond(0).unwrap_or(now) - into;
        current - self.period() * i32::from(self.bars().0 - 1)
    }

    /// Every period with its sums, those without a request too.
    fn fill(self, now: OffsetDateTime, used: &[PeriodTotals]) -> Vec<PeriodTotals> {
        let since = self.since(now);
        (0..self.bars().0)
            .map(|place| since + self.period() * i32::from(place))
            .map(|start| PeriodTotals {
                start,
                totals: used
                    .iter()
                    .find(|period| period.start == start)
                    .map_or_else(Totals::default, |period| period.totals.clone()),
            })
            .collect()
    }
}

/// The bars, and the same as a table.
pub fn requests(range: Range, now: OffsetDateTime, used: &[PeriodTotals]) -> Markup {
    let periods = range.fill(now, used);
    let sum: i64 = periods.iter().map(|period| period.totals.requests).sum();
    let summary = format!("{} requests in {}", count(sum), range.title());
    html! {
        (bars(range, &periods, &summary))
        details {
            summary { "As a table" }
            div .scroll { table {
                thead { tr {
                    th { "From (UTC)" }
                    th .figure { "Requests" }
                    th .figure { "Tokens in" }
                    th .figure { "Tokens out" }
                    th .figure { "Cost" }
                } }
                tbody { @for period in periods.iter().rev() { tr {
                    td .time { (day(period.start)) @if range == Range::Day { " " (hour(period.start)) } }
                    (usage::sums(&period.totals))
                } } }
            } }
        }
    }
}

/// In percent of the drawing, so that it fills any width while text keeps its size.
fn bars(range: Range, periods: &[PeriodTotals], summary: &str) -> Markup {
    let (bars, labelled) = range.bars();
    let step = 100.0 / f64::from(bars);
    let highest = periods.iter().map(|period| period.totals.requests).max();
    let highest = highest.unwrap_or_default().max(1);
    let percent = |number: f64| format!("{number:.2}%");
    html! {
        svg .chart role="img" aria-label=(summary) width="100%" height="190" {
            text .axis x="0" y="11" { (count(highest)) }
            svg y="16" width="100%" height="150" {
                line .grid x1="0" x2="100%" y1="0" y2="0" {}
                line .grid x1="0" x2="100%" y1="100%" y2="100%" {}
                @for (place, period) in (0..bars).zip(periods) {
                    @let left = percent(step * f64::from(place));
                    @let height = period.totals.requests as f64 * 100.0 / highest as f64;
                    g {
                        title { (describe(range, period)) }
                        // all of the column answers to the pointer
                        rect .column x=(left) y="0" width=(percent(step)) height="100%" {}
                        rect .bar x=(left) y=(percent(100.0 - height))
                            width=(percent(step * 0.8)) height=(percent(height)) {}
                    }
                }
            }
            @for (place, period) in (0..bars).zip(periods) {
                @if (bars - 1 - place).is_multiple_of(labelled) {
                    text .axis .end x=(percent(step * (f64::from(place) + 0.8))) y="184" {
                        (range.label(period.start))
                    }
                }
            }
        }
    }
}

fn describe(range: Range, PeriodTotals { start, totals }: &PeriodTotals) -> String {
    let tokens = totals.prompt_tokens + totals.completion_tokens;
    format!(
        "{}: {} requests, {} tokens, {}",
        range.label(*start),
        count(totals.requests),
        count(tokens),
        totals.cost
    )
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn every_period_has_a_bar_and_the_last_is_under_way() {
        let now = datetime!(2026-03-01 12:34:56.789 UTC);
        let used = [PeriodTotals {
            start: datetime!(2026-03-01 12:00 UTC),
            totals: Totals {
                requests: 3,
                ..Totals::default()
            },
        }];
        let hours = Range::Day.fill(now, &used);
        assert_eq!(hours.len(), 24);
        assert_eq!(hours[0].start, datetime!(2026-02-28 13:00 UTC));
        assert_eq!(hours[23].totals.requests, 3);
        assert_eq!(hours.iter().map(|h| h.totals.requests).sum::<i64>(), 3);

        let days = Range::Month.fill(now, &[]);
        assert_eq!(days.len(), 30);
        assert_eq!(days[0].start, datetime!(2026-01-31 0:00 UTC));
        assert_eq!(days[29].start, datetime!(2026-03-01 0:00 UTC));
    }
}
