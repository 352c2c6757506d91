//! What clients are told of their limits: OpenAI's `x-ratelimit-*` headers, which
//! its SDKs read, and the IETF's `RateLimit` and `RateLimit-Policy`
//! (draft-ietf-httpapi-ratelimit-headers-11).

use std::fmt::{self, Write};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::limits::{Limit, Standing, Subject, Unit};

/// OpenAI's three headers for a unit.
const OPENAI: [(Unit, [HeaderName; 3]); 2] = [
    (
        Unit::Requests,
        [
            HeaderName::from_static("x-ratelimit-limit-requests"),
            HeaderName::from_static("x-ratelimit-remaining-requests"),
            HeaderName::from_static("x-ratelimit-reset-requests"),
        ],
    ),
    (
        Unit::Tokens,
        [
            HeaderName::from_static("x-ratelimit-limit-tokens"),
            HeaderName::from_static("x-ratelimit-remaining-tokens"),
            HeaderName::from_static("x-ratelimit-reset-tokens"),
        ],
    ),
];
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What an error tells of limits.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The one that refuses.
    pub refuses: Option<Limit>,
    /// How all of them stand, where that is known.
    pub standings: Vec<Standing>,
}

/// Writes how the limits stand, if any hold.
pub fn write(headers: &mut HeaderMap, standings: &[Standing]) {
    for (unit, [limit, remaining, reset]) in OPENAI {
        // of several the one that is nearest to its end
        let of_unit = standings
            .iter()
            .filter(|standing| standing.limit.unit == unit);
        if let Some(standing) = of_unit.min_by_key(|standing| standing.remaining) {
            headers.insert(limit, standing.limit.most.get().into());
            headers.insert(remaining, standing.remaining.into());
            insert(headers, reset, &duration(standing.reset));
        }
    }
    if !standings.is_empty() {
        let list = |item: fn(&mut String, &Standing) -> fmt::Result| {
            let mut list = String::new();
            for standing in standings {
                if !list.is_empty() {
                    list.push_str(", ");
                }
                // to a text: none fails
                let _ = item(&mut list, standing);
            }
            list
        };
        insert(headers, RATE_LIMIT_POLICY, &list(policy));
        insert(headers, RATE_LIMIT, &list(service_limit));
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// A limit as a quota policy. The draft's registry has no unit for tokens yet.
fn policy(to: &mut String, standing: &Standing) -> fmt::Result {
    let limit = standing.limit;
    let (name, quota) = (limit.name(), limit.most);
    match limit.unit {
        Unit::Requests => write!(to, "\"{name}\";q={quota};w=60"),
        Unit::Tokens => write!(to, "\"{name}\";q={quota};qu=\"tokens\";w=60"),
        Unit::Concurrent => write!(to, "\"{name}\";q={quota};qu=\"concurrent-requests\""),
    }
}

/// What is left of a limit, and for how many seconds no more will be, rounded up.
fn service_limit(to: &mut String, standing: &Standing) -> fmt::Result {
    let (name, remaining) = (standing.limit.name(), standing.remaining);
    write!(to, "\"{name}\";r={remaining}")?;
    match standing.limit.unit {
        Unit::Concurrent => Ok(()),
        _ => write!(to, ";t={}", whole_seconds(standing.next)),
    }
}

/// A time in whole seconds, rounded up: earlier it would not be over.
pub fn whole_seconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
}

/// A limit in the body of an error.
pub fn body(limit: &Limit) -> Value {
    json!({
        "policy": limit.name(),
        "of": match limit.subject {
            Subject::Key { .. } => "key",
            Subject::Customer(_) => "customer",
        },
        "unit": match limit.unit {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::Concurrent => "concurrent_requests",
        },
        "most": limit.most,
    })
}

/// A time as OpenAI writes it, which is Go's way: `20ms`, `1.5s`, `6m0s`.
fn duration(time: Duration) -> String {
    // rounded up: earlier there would be less
    let millis = time.as_micros().div_ceil(1000);
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let seconds = match (millis / 1000, millis % 1000) {
        (0, rest) if rest > 0 && minutes == 0 => return format!("{rest}ms"),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, rest) => format!("{seconds}.{}s", format!("{rest:03}").trim_end_matches('0')),
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        for (micros, seconds) in [(0, 0), (1, 1), (600, 1), (1_000_000, 1), (1_000_400, 2)] {
            assert_eq!(whole_seconds(Duration::from_micros(micros)), seconds);
        }
    }

    #[test]
    fn times_are_written_as_by_openai() {
        for (micros, text) in [
            (0, "0s"),
            (1, "1ms"),
            (20_000, "20ms"),
            (1_000_000, "1s"),
            (8_640_000, "8.64s"),
            (59_999_001, "1m0s"),
            (360_000_000, "6m0s"),
            (61_500_000, "1m1.5s"),
            (60_005_000, "1m0.005s"),
            (3_600_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }
}
