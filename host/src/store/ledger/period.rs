//! The periods of budgets, by UTC.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime, Time, UtcOffset};

use crate::store::Error;

/// What a budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// A day.
    Day,
    /// A calendar month.
    Month,
    /// All time.
    Total,
}

impl Period {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// When the period began that this time is in.
    pub fn start(self, at: OffsetDateTime) -> OffsetDateTime {
        let midnight = at.to_offset(UtcOffset::UTC).replace_time(Time::MIDNIGHT);
        match self {
            Self::Day => midnight,
            Self::Month => midnight.replace_day(1).unwrap_or(midnight),
            Self::Total => OffsetDateTime::UNIX_EPOCH,
        }
    }

    /// When the next period begins after one that began at `start`; never for a total.
    pub fn end(self, start: OffsetDateTime) -> Option<OffsetDateTime> {
        match self {
            Self::Day => Some(start + Duration::DAY),
            // 32 days on it is the next month in any case
            Self::Month => Some(Self::Month.start(start + Duration::days(32))),
            Self::Total => None,
        }
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "day" => Ok(Self::Day),
            "month" => Ok(Self::Month),
            "total" => Ok(Self::Total),
            other => Err(Error::Database(format!("unknown period {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::Period;

    #[test]
    fn periods_begin_and_end_by_utc() {
        let at = datetime!(2028-02-29 23:59:59.999 -01:00);
        assert_eq!(Period::Day.start(at), datetime!(2028-03-01 00:00 UTC));
        assert_eq!(Period::Month.start(at), datetime!(2028-03-01 00:00 UTC));
        assert_eq!(Period::Total.start(at), datetime!(1970-01-01 00:00 UTC));
        let end = |period: Period, at| period.end(period.start(at));
        let leap = datetime!(2028-02-10 12:00 UTC);
        assert_eq!(
            end(Period::Day, leap),
            Some(datetime!(2028-02-11 00:00 UTC))
        );
        assert_eq!(
            end(Period::Month, leap),
            Some(datetime!(2028-03-01 00:00 UTC))
        );
        let december = datetime!(2028-12-31 12:00 UTC);
        assert_eq!(
            end(Period::Month, december),
            Some(datetime!(2029-01-01 00:00 UTC))
        );
        assert_eq!(end(Period::Total, leap), None);
    }
}
