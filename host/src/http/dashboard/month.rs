//! Of which time sums are: of all, or of a calendar month, which bills are for.

use maud::{Markup, html};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};

use super::figures;
use crate::store::ledger::Period;
use crate::store::usage::Span;

/// A calendar month by UTC, or all time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Month {
    /// All time.
    #[default]
    All,
    /// The one that runs.
    This,
    /// The one before.
    Last,
}

impl Month {
    /// As the query has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::This => "this",
            Self::Last => "last",
        }
    }

    /// The time that it is.
    pub fn span(self, now: OffsetDateTime) -> Span {
        let this = Period::Month.start(now);
        let start = match self {
            Self::All => return Span::default(),
            Self::This => this,
            Self::Last => Period::Month.start(this - Duration::DAY),
        };
        Span {
            from: Some(start),
            to: Period::Month.end(start),
        }
    }

    /// What it is called.
    fn title(self, now: OffsetDateTime) -> String {
        let name = self.span(now).from.map(figures::month).unwrap_or_default();
        match self {
            Self::All => "All time".to_owned(),
            Self::This => format!("This month ({name})"),
            Self::Last => format!("Last month ({name})"),
        }
    }
}

/// Links to choose, of which one is shown.
pub fn choice(shown: Month, now: OffsetDateTime, path: impl Fn(Month) -> String) -> Markup {
    html! {
        nav #month aria-label="Time of the sums" {
            @for month in [Month::All, Month::This, Month::Last] {
                a href=(path(month)) aria-current=[(month == shown).then_some("true")] {
                    (month.title(now))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn months_are_the_calendars_by_utc() {
        let now = datetime!(2028-02-29 23:30 -01:00);
        for (month, title, from, to) in [
            (Month::All, "All time", None, None),
            (
                Month::This,
                "This month (March 2028)",
                Some(datetime!(2028-03-01 00:00 UTC)),
                Some(datetime!(2028-04-01 00:00 UTC)),
            ),
            (
                Month::Last,
                "Last month (February 2028)",
                Some(datetime!(2028-02-01 00:00 UTC)),
                Some(datetime!(2028-03-01 00:00 UTC)),
            ),
        ] {
            assert_eq!(month.span(now), Span { from, to });
            assert_eq!(month.title(now), title);
        }
        let january = datetime!(2028-01-15 12:00 UTC);
        let from = Month::Last.span(january).from;
        assert_eq!(from, Some(datetime!(2027-12-01 00:00 UTC)));
    }
}
