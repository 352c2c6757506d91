//! The time of day. Everything that needs it is given a [`Clock`]; a lint bans
//! reading it anywhere else.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads the time of day.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The time now, in UTC, to the millisecond: as precise as it is stored.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    pub fn now(self) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        now.replace_millisecond(now.millisecond()).unwrap_or(now)
    }
}

/// A time as RFC 3339 writes it.
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}
