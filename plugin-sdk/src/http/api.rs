//! A model's API as an adapter needs it.

use std::collections::BTreeMap;
use std::mem::take;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::sse::{Events, Record};
use super::{Post, Retry, unusable, upstream};
use crate::{Completion, Error, ErrorKind, Event, Request, Settings};

/// The most tries after the first one: the host allows eight requests by default.
const MOST_RETRIES: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The API that the operator's settings name:
///
/// - `api_url`: where it is
/// - `extra_headers`: a table of headers to send besides the adapter's own
/// - `extra_body`: a table of fields to add to each request's body; they take the
///   place of the adapter's own
/// - `retries`: how often to try again, 0 to 5, 0 if not given; see [`Retry`]
#[derive(Debug)]
pub struct Api {
    url: String,
    headers: BTreeMap<String, String>,
    body: BTreeMap<String, Box<RawValue>>,
    retry: Retry,
}

/// How an API's answers become events.
pub trait Decode {
    /// Takes an answer that came whole; gives all its events, [`Event::Finish`]
    /// as the last.
    ///
    /// # Errors
    /// When it is an error, or makes no sense.
    fn whole(&mut self, body: &[u8]) -> Result<Vec<Event>, Error>;

    /// Takes the next record of an answer that is streamed; gives the events that
    /// it completes.
    ///
    /// # Errors
    /// When it is an error, or makes no sense.
    fn record(&mut self, record: &Record) -> Result<Vec<Event>, Error>;

    /// The stream has ended, and there was no [`Event::Finish`] yet.
    ///
    /// # Errors
    /// Unless the end of the answer can be told from what came.
    fn end(&mut self) -> Result<Vec<Event>, Error> {
        Err(unusable("it ended before the end of the answer"))
    }
}

/// An API's answer, streamed or whole: a [`Completion`].
#[derive(Debug)]
pub struct Answer<D>(State<D>);

#[derive(Debug)]
enum State<D> {
    Whole(Vec<Event>),
    Streamed(Box<Streamed<D>>),
}

#[derive(Debug)]
struct Streamed<D> {
    events: Events,
    decoder: D,
    /// What went wrong after the events that were reported.
    failed: Option<Error>,
}

impl Api {
    /// The settings that are read here, for [`Settings::only`].
    pub const SETTINGS: [&str; 4] = ["api_url", "extra_body", "extra_headers", "retries"];

    /// Reads the settings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] naming the setting that is missing or wrong.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let retries = settings.parsed("retries")?.unwrap_or(0);
        if retries > MOST_RETRIES {
            return Err(wrong("retries", format_args!("more than {MOST_RETRIES}")));
        }
        let retry = Retry {
            retries,
            longest_pause: LONGEST_PAUSE,
        };
        Ok(Self {
            url: settings.required("api_url")?.to_owned(),
            headers: table(settings, "extra_headers")?,
            body: table(settings, "extra_body")?,
            retry,
        })
    }

    /// Adds a header to each request, unless the operator has one of that name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let own = self.headers.entry(name.to_owned());
        own.or_insert_with(|| value.to_owned());
        self
    }

    /// Posts `body` as JSON to `path` below the API's URL, and has `decoder` read
    /// the answer: as a stream of events if it is one by its content type, else as
    /// a whole. All within the request's deadline.
    ///
    /// # Errors
    /// As [`Post::open`] and [`upstream::refused`], and what `decoder` makes of a
    /// whole answer.
    pub fn ask<D: Decode>(
        &self,
        request: &Request,
        path: &str,
        body: &impl Serialize,
        mut decoder: D,
    ) -> Result<Answer<D>, Error> {
        let json = self.json(body).map_err(|error| {
            Error::new(ErrorKind::Internal, "the request cannot be passed on").detail(error)
        })?;
        let accept = if request.is_streamed() {
            "text/event-stream, application/json"
        } else {
            "application/json"
        };
        let own = [("accept", accept), ("x-request-id", &request.request_id)];
        let more = self.headers.iter();
        let more = more.map(|(name, value)| (name.as_str(), value.as_str()));
        let headers: Vec<(&str, &str)> = own.into_iter().chain(more).collect();
        let answer = self.retry.open(&Post {
            url: &at(&self.url, path),
            headers: &headers,
            json: &json,
            timeout: Duration::from_millis(request.deadline_ms.into()),
            // the host's is the operator's
            response_limit: usize::MAX,
        })?;
        if answer.status != 200 {
            return Err(upstream::refused(&answer.whole()?));
        }
        let is_stream = answer
            .header("content-type")
            .is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"));
        if !is_stream {
            return Ok(Answer(State::Whole(decoder.whole(&answer.whole()?.body)?)));
        }
        Ok(Answer(State::Streamed(Box::new(Streamed {
            events: Events::new(answer),
            decoder,
            failed: None,
        }))))
    }

    fn json(&self, body: &impl Serialize) -> serde_json::Result<Vec<u8>> {
        let json = serde_json::to_vec(body)?;
        if self.body.is_empty() {
            return Ok(json);
        }
        let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_slice(&json)?;
        let more = self.body.iter();
        fields.extend(more.map(|(name, value)| (name.as_str(), &**value)));
        serde_json::to_vec(&fields)
    }
}

impl<D: Decode> Completion for Answer<D> {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        match &mut self.0 {
            State::Whole(events) => Ok(take(events)),
            State::Streamed(streamed) => streamed.next(),
        }
    }
}

impl<D: Decode> Streamed<D> {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while let Some(records) = self.events.records()? {
            let events = self.decode(&records)?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
        self.decoder.end()
    }

    /// The events of records that came together, up to the end of the answer. An
    /// error among them waits for its turn.
    fn decode(&mut self, records: &[Record]) -> Result<Vec<Event>, Error> {
        let mut found = Vec::new();
        for record in records {
            match self.decoder.record(record) {
                Ok(events) => found.extend(events),
                Err(error) if found.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
            if matches!(found.last(), Some(Event::Finish(_))) {
                self.events.drain();
                break;
            }
        }
        Ok(found)
    }
}

/// `path` below `url`, whose query stays behind it.
fn at(url: &str, path: &str) -> String {
    if path.is_empty() {
        return url.to_owned();
    }
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (base, query) = url.split_at(end);
    format!("{}{path}{query}", base.trim_end_matches('/'))
}

/// A setting that is a table, which comes as JSON.
fn table<T: serde::de::DeserializeOwned>(
    settings: &Settings,
    key: &str,
) -> Result<BTreeMap<String, T>, Error> {
    match settings.get(key) {
        None | Some("") => Ok(BTreeMap::new()),
        Some(json) => serde_json::from_str(json).map_err(|error| wrong(key, error)),
    }
}

fn wrong(key: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidRequest, format!("setting {key}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::{Api, at};
    use crate::Settings;

    fn open(pairs: &[(&str, &str)]) -> Result<Api, crate::Error> {
        let url = ("api_url", "https://api.example/v1");
        let pairs = [url].into_iter().chain(pairs.iter().copied());
        let settings: Settings = pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Api::open(&settings)
    }

    #[test]
    fn a_path_goes_below_the_url() {
        for (url, path, whole) in [
            ("https://a/v1", "/chat", "https://a/v1/chat"),
            ("https://a/v1/", "/chat", "https://a/v1/chat"),
            ("https://a/v1?v=1", "/chat", "https://a/v1/chat?v=1"),
            ("https://a/v1/", "", "https://a/v1/"),
        ] {
            assert_eq!(at(url, path), whole);
        }
    }

    #[test]
    fn the_operators_fields_and_headers_come_first() {
        let more = r#"{"b":[1.50],"c":true}"#;
        let api = open(&[("extra_body", more), ("extra_headers", r#"{"x-a":"1"}"#)]).unwrap();
        let own = serde_json::json!({ "a": "x", "b": 2 });
        let json = String::from_utf8(api.json(&own).unwrap()).unwrap();
        assert_eq!(json, r#"{"a":"x","b":[1.50],"c":true}"#);
        let api = api.header("x-a", "2").header("x-b", "3");
        assert_eq!((&*api.headers["x-a"], &*api.headers["x-b"]), ("1", "3"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (key, value) in [
            ("retries", "6"),
            ("retries", "-1"),
            ("extra_headers", "[]"),
            ("extra_headers", r#"{"a":1}"#),
            ("extra_body", "rubbish"),
        ] {
            let error = open(&[(key, value)]).unwrap_err();
            assert!(error.message.contains(key), "{}", error.message);
        }
        assert_eq!(open(&[("extra_body", "")]).unwrap().retry.retries, 0);
    }
}
