//! What the operator configured for a model.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// The model's name, for its metrics.
const NAME: &str = "name";

/// Settings of one model from the operator's configuration, without its
/// secrets. Values that are lists or tables there are JSON text here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value of `key`, which must not be empty.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] with the key, for the operator.
    pub fn required(&self, key: &str) -> Result<&str, Error> {
        self.given(key)
            .ok_or_else(|| invalid(format!("setting {key} is missing")))
    }

    /// The value of `key` as a number, `true` or `false`, or whatever else is read
    /// from text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] with the key, for the operator.
    pub fn parsed<T: FromStr>(&self, key: &str) -> Result<Option<T>, Error> {
        let parsed = self.given(key).map(str::parse).transpose();
        parsed.map_err(|_| invalid(format!("setting {key} cannot be {:?}", self.0[key])))
    }

    /// Refuses settings by other names than these: one that is misspelt would do nothing.
    /// The `name`, which the host gives each native model, may always be there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] with the key and the names, for the operator.
    pub fn only<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
        let names: BTreeSet<_> = names.into_iter().collect();
        let is_unknown = |key: &&str| !names.contains(key) && *key != NAME;
        match self.keys().find(is_unknown) {
            None => Ok(()),
            Some(key) => {
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                Err(invalid(format!(
                    "setting {key} is unknown: there are {names}"
                )))
            }
        }
    }

    /// All names, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// An environment variable that is not set leaves a setting empty.
    fn given(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Settings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn a_wrong_setting_is_named() {
        let pairs = [("url", ""), ("retries", "3"), ("stream", "yes")];
        let settings: Settings = pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        let error = settings.required("url").unwrap_err();
        assert_eq!(error.message, "setting url is missing");
        assert_eq!(settings.parsed("url"), Ok(None::<u8>));
        assert_eq!(settings.parsed("retries"), Ok(Some(3)));
        let error = settings.parsed::<bool>("stream").unwrap_err();
        assert_eq!(error.message, "setting stream cannot be \"yes\"");
        settings.only(["stream", "url", "retries"]).unwrap();
        let error = settings.only(["stream", "retries"]).unwrap_err();
        assert_eq!(
            error.message,
            "setting url is unknown: there are retries, stream"
        );
    }
}
