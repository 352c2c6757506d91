//! The text of a key: `mhk_` or `mha_`, 8 characters that name it, `_`,
//! 32 characters of secret (190 bits), 6 of CRC-32. All are base 62, so that
//! a double click selects the whole; the checksum tells a typing error from a
//! wrong key without the database, and a secret scanner from other text.

use secrecy::SecretString;

/// Prefix of customers' keys.
pub const CUSTOMER: &str = "mhk_";
/// Prefix of admin keys that the server made.
pub const ADMIN: &str = "mha_";

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PUBLIC: usize = 8;
const SECRET: usize = 32;
const CHECKSUM: usize = 6;

/// A key just made.
pub struct Made {
    /// The whole key.
    pub text: SecretString,
    /// The part that names it.
    pub public_id: String,
}

/// Makes a key from the operating system's randomness.
///
/// # Errors
/// When the operating system gives none.
pub fn generate(prefix: &str) -> Result<Made, getrandom::Error> {
    let public_id = random(PUBLIC)?;
    let mut text = format!("{prefix}{public_id}_{}", random(SECRET)?);
    text += &checksum(&text);
    Ok(Made {
        text: text.into(),
        public_id,
    })
}

/// The part that names the key, if `text` is a key of this prefix and its
/// checksum is right.
pub fn public_id<'a>(prefix: &str, text: &'a str) -> Option<&'a str> {
    let rest = text.strip_prefix(prefix)?;
    if rest.len() != PUBLIC + 1 + SECRET + CHECKSUM || !rest.is_ascii() {
        return None;
    }
    let (body, sum) = text.split_at(text.len() - CHECKSUM);
    let (public, secret) = rest.split_at(PUBLIC);
    let names = public.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (names && secret.starts_with('_') && checksum(body) == sum).then_some(public)
}

/// What people see of a key's text: its beginning, up to the part that names it.
pub fn prefix(public_id: &str) -> String {
    format!("{CUSTOMER}{public_id}")
}

/// `length` characters, each of the 62 equally likely.
fn random(length: usize) -> Result<String, getrandom::Error> {
    // bytes from here up would make some characters likelier than others
    const FAIR: u8 = 62 * 4;
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes)?;
        let fair = bytes.iter().filter(|&&byte| byte < FAIR);
        text.extend(
            fair.map(|byte| char::from(ALPHABET[usize::from(byte % 62)]))
                .take(length - text.len()),
        );
    }
    Ok(text)
}

fn checksum(text: &str) -> String {
    let mut sum = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(sum % 62) as usize];
        sum /= 62;
    }
    digits.iter().map(|&digit| char::from(digit)).collect()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_key_is_recognised_and_a_typing_error_is_not() {
        let made = generate(CUSTOMER).unwrap();
        let text = made.text.expose_secret();
        assert_eq!(public_id(CUSTOMER, text), Some(made.public_id.as_str()));
        assert_eq!(public_id(ADMIN, text), None);
        for at in 0..text.len() {
            let mut typed = text.to_owned().into_bytes();
            typed[at] = if typed[at] == b'x' { b'y' } else { b'x' };
            assert_eq!(
                public_id(CUSTOMER, std::str::from_utf8(&typed).unwrap()),
                None
            );
        }
        assert_eq!(public_id(CUSTOMER, &text[..text.len() - 1]), None);
    }

    #[test]
    fn a_name_of_other_characters_is_none() {
        for public in ["\0\0\0\0\0\0\0\0", "%' OR 1=1", "1234 678"] {
            let body = format!("{CUSTOMER}{public}_{}", "0".repeat(SECRET));
            let text = body.clone() + &checksum(&body);
            assert_eq!(public_id(CUSTOMER, &text), None);
        }
    }

    #[test]
    fn no_two_keys_are_the_same() {
        let keys: std::collections::HashSet<_> = (0..1000)
            .map(|_| generate(CUSTOMER).unwrap().text.expose_secret().to_owned())
            .collect();
        assert_eq!(keys.len(), 1000);
    }
}
