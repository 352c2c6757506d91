//! How numbers and times are written on pages.

use time::OffsetDateTime;
use time::macros::format_description;

/// A number in groups of three digits.
pub fn count(number: impl Into<i64>) -> String {
    let number = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How long something took.
pub fn latency(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// A time, to the second.
pub fn time(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    time.format(format).unwrap_or_default()
}

/// A day.
pub fn day(time: OffsetDateTime) -> String {
    let format = format_description!("[day padding:none] [month repr:short]");
    time.format(format).unwrap_or_default()
}

/// A calendar month.
pub fn month(time: OffsetDateTime) -> String {
    let format = format_description!("[month repr:long] [year]");
    time.format(format).unwrap_or_default()
}

/// An hour of a day.
pub fn hour(time: OffsetDateTime) -> String {
    let format = format_description!("[hour]:[minute]");
    time.format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn figures_are_readable() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(count(number), text);
        }
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_250, "1.2 s"),
            (61_000, "1 min 1 s"),
        ] {
            assert_eq!(latency(ms), text);
        }
        let moment = datetime!(2026-01-02 03:04:05.678 UTC);
        assert_eq!(time(moment), "2026-01-02 03:04:05 UTC");
        assert_eq!(day(moment), "2 Jan");
        assert_eq!(month(moment), "January 2026");
        assert_eq!(hour(moment), "03:04");
    }
}
