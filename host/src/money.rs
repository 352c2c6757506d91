//! Money in integer nano-dollars (10⁻⁹ US dollars), and what tokens cost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const NANOS_PER_DOLLAR: i64 = 1_000_000_000;
const TOKENS_PER_PRICE: i128 = 1_000_000;

/// An amount in nano-dollars. In JSON it is a number of US dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NanoDollars(pub i64);

impl NanoDollars {
    /// A hundredth of a dollar, the least that can be charged.
    pub const CENT: Self = Self(NANOS_PER_DOLLAR / 100);

    /// How many whole cents are in it, and what is left over.
    pub fn cents(self) -> (i64, Self) {
        (self.0 / Self::CENT.0, Self(self.0 % Self::CENT.0))
    }
}

/// Why a text is not an amount of dollars.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not an amount of dollars: expected digits with at most nine decimals, such as 0.15"
)]
pub struct ParseError(String);

impl FromStr for NanoDollars {
    type Err = ParseError;

    /// Parses a decimal number of dollars, exactly.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError(text.to_owned());
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 9 {
            return Err(wrong());
        }
        let whole: i64 = whole.parse().map_err(|_| wrong())?;
        let nanos: i64 = format!("{decimals:0<9}").parse().map_err(|_| wrong())?;
        whole
            .checked_mul(NANOS_PER_DOLLAR)
            .and_then(|w| w.checked_add(nanos))
            .map(Self)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for NanoDollars {
    /// Dollars with all nine decimals, less trailing zeros beyond the cent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, nanos) = (
            self.0.unsigned_abs() / NANOS_PER_DOLLAR.unsigned_abs(),
            self.0.unsigned_abs() % NANOS_PER_DOLLAR.unsigned_abs(),
        );
        let decimals = format!("{nanos:09}");
        let kept = decimals.trim_end_matches('0').len().max(2);
        write!(f, "{sign}${whole}.{}", &decimals[..kept])
    }
}

impl Serialize for NanoDollars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // exact to the nano-dollar below nine million dollars, where f64 has 53 bits
        serializer.serialize_f64(self.0 as f64 / NANOS_PER_DOLLAR as f64)
    }
}

impl<'de> Deserialize<'de> for NanoDollars {
    /// From a number or a decimal text of dollars.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = dollars(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// An amount that may be below 0, from a number or a decimal text of dollars.
///
/// # Errors
/// When it is no amount.
pub fn signed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NanoDollars, D::Error> {
    let text = dollars(deserializer)?;
    let amount = match text.strip_prefix('-') {
        Some(positive) => positive
            .parse()
            .map(|NanoDollars(nanos)| NanoDollars(-nanos)),
        None => text.parse(),
    };
    amount.map_err(de::Error::custom)
}

/// A number or a text of dollars as the text that was written.
fn dollars<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "an amount of dollars: a number or a decimal text"
    )]
    enum Dollars {
        Whole(u32),
        Number(f64),
        Text(String),
    }
    Ok(match Dollars::deserialize(deserializer)? {
        Dollars::Whole(dollars) => dollars.to_string(),
        // the shortest text that reads back as the same number is what was written
        Dollars::Number(dollars) => dollars.to_string(),
        Dollars::Text(text) => text,
    })
}

/// What a model costs, in nano-dollars per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A million tokens of prompt.
    pub prompt: NanoDollars,
    /// A million tokens of answer.
    pub completion: NanoDollars,
}

impl Default for Price {
    /// Ten dollars a million either way: 100 tokens cost 0.001 dollars.
    fn default() -> Self {
        let ten = NanoDollars(10 * NANOS_PER_DOLLAR);
        Self {
            prompt: ten,
            completion: ten,
        }
    }
}

impl Price {
    /// What these tokens cost, rounded once, half up, to a nano-dollar.
    pub fn of(self, prompt_tokens: u32, completion_tokens: u32) -> NanoDollars {
        let millionths = i128::from(self.prompt.0) * i128::from(prompt_tokens)
            + i128::from(self.completion.0) * i128::from(completion_tokens);
        let nanos = (millionths + TOKENS_PER_PRICE / 2) / TOKENS_PER_PRICE;
        NanoDollars(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// Most tokens of answer to a prompt of so many tokens that cost no more than
    /// this; none if the prompt alone does.
    pub fn affordable(self, amount: NanoDollars, prompt_tokens: u32) -> Option<u32> {
        // the most that is still rounded down to the amount
        let millionths = (i128::from(amount.0) + 1) * TOKENS_PER_PRICE - TOKENS_PER_PRICE / 2 - 1;
        let left = millionths - i128::from(self.prompt.0) * i128::from(prompt_tokens);
        match (left, self.completion.0) {
            (..0, _) => None,
            (_, 0) => Some(u32::MAX),
            (_, price) => Some(u32::try_from(left / i128::from(price)).unwrap_or(u32::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_tokens_cost_a_tenth_of_a_cent_by_default() {
        assert_eq!(Price::default().of(40, 60), NanoDollars(1_000_000));
        assert_eq!(
            serde_json::to_string(&Price::default().of(40, 60)).unwrap(),
            "0.001"
        );
    }

    #[test]
    fn cost_is_rounded_once_for_the_whole_request() {
        let price = Price {
            prompt: NanoDollars(37_500_000),
            completion: NanoDollars(37_500_000),
        };
        assert_eq!(price.of(1, 0), NanoDollars(38));
        assert_eq!(price.of(1, 1), NanoDollars(75));
    }

    #[test]
    fn what_is_affordable_costs_no_more_and_one_token_more_does() {
        let prices = [
            (37_500_000, 37_500_000),
            (0, 1),
            (10_000_000_000, 7),
            (3, 0),
        ];
        for (prompt, completion) in prices {
            let price = Price {
                prompt: NanoDollars(prompt),
                completion: NanoDollars(completion),
            };
            for amount in [-1, 0, 1, 37, 38, 1_000, 123_456_789].map(NanoDollars) {
                for tokens in [0, 1, 7, 1_000] {
                    let Some(most) = price.affordable(amount, tokens) else {
                        assert!(price.of(tokens, 0) > amount);
                        continue;
                    };
                    assert!(price.of(tokens, most) <= amount);
                    let more = most.checked_add(1);
                    assert!(more.is_none_or(|more| price.of(tokens, more) > amount));
                }
            }
        }
    }

    #[test]
    fn amounts_may_be_signed_where_they_may() {
        for (json, nanos) in [
            ("-5", -5_000_000_000),
            ("\"-0.000000001\"", -1),
            ("0.1", 100_000_000),
        ] {
            let read = signed(&mut serde_json::Deserializer::from_str(json)).unwrap();
            assert_eq!(read, NanoDollars(nanos));
            assert_eq!(serde_json::from_str::<NanoDollars>(json).is_ok(), nanos > 0);
        }
        assert!(signed(&mut serde_json::Deserializer::from_str("\"--1\"")).is_err());
    }

    #[test]
    fn dollars_are_read_exactly_or_refused() {
        for (text, nanos) in [
            ("0.15", 150_000_000),
            ("10", 10_000_000_000),
            ("0.000000001", 1),
        ] {
            assert_eq!(text.parse::<NanoDollars>().unwrap(), NanoDollars(nanos));
        }
        for text in [
            "",
            ".",
            "-1",
            "1e3",
            "0.0000000001",
            "1.",
            "1.2.3",
            "99999999999",
        ] {
            assert!(text.parse::<NanoDollars>().is_err(), "{text}");
        }
    }

    #[test]
    fn dollars_are_shown_to_the_cent_and_further_where_needed() {
        assert_eq!(NanoDollars(1_500_000_000).to_string(), "$1.50");
        assert_eq!(NanoDollars(1_000_000).to_string(), "$0.001");
        assert_eq!(NanoDollars(-20_000_000).to_string(), "-$0.02");
    }

    #[test]
    fn cents_and_what_is_left_over_are_the_amount() {
        assert_eq!(NanoDollars(9_999_999).cents(), (0, NanoDollars(9_999_999)));
        assert_eq!(NanoDollars(30_000_001).cents(), (3, NanoDollars(1)));
    }
}
