//! The time of day. Everything that needs it is given a [`Clock`]; a lint bans
//! reading it anywhere else.

use time::OffsetDateTime;

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
