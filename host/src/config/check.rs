//! Rules across the values of a configuration; pure, and returns every problem.

use std::collections::HashSet;
use std::fmt;

use super::{Config, Model};

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, such as `models[1].api_url`.
    pub at: String,
    /// What.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// Every problem of `config`; none when it can be used.
pub fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut report = |at: String, message: &str| {
        found.push(Problem {
            at,
            message: message.to_owned(),
        });
    };
    if config.requests.per_minute == 0 {
        report("requests.per_minute".into(), "must be at least 1");
    }
    if config.requests.max_body_bytes == 0 {
        report("requests.max_body_bytes".into(), "must be at least 1");
    }
    if let Some(problem) = config.stripe.api_base.as_deref().and_then(of_url) {
        report("stripe.api_base".into(), problem);
    }
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    for (index, model) in config.models.iter().enumerate() {
        let at = |field: &str| format!("models[{index}].{field}");
        if model.id < 1 {
            report(at("id"), "must be 1 or more");
        }
        if !ids.insert(model.id) {
            report(at("id"), "another model has this id");
        }
        if model.name.is_empty() {
            report(at("name"), "must not be empty");
        }
        if !names.insert(model.name.as_str()) {
            report(at("name"), "another model has this name");
        }
        for (field, message) in of_model(model) {
            report(at(field), message);
        }
    }
    found
}

fn of_model(model: &Model) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let limits = &model.limits;
    let at_least_one = [
        ("limits.max_prompt_bytes", limits.max_prompt_bytes),
        ("limits.max_new_tokens", limits.max_new_tokens as usize),
        ("limits.timeout_ms", limits.timeout_ms as usize),
        ("limits.parallel", limits.parallel),
        ("limits.queue", limits.queue),
        ("limits.memory_mib", limits.memory_mib),
        ("limits.cpu_ms", limits.cpu_ms as usize),
    ];
    for (field, value) in at_least_one {
        if value == 0 {
            found.push((field, "must be at least 1"));
        }
    }
    if limits.requests_per_minute == Some(0) {
        found.push(("limits.requests_per_minute", "must be at least 1"));
    }
    if let Some(url) = &model.api_url
        && model.unavailable.is_none()
        && let Some(problem) = of_url(url)
    {
        found.push(("api_url", problem));
    }
    found
}

fn of_url(url: &str) -> Option<&'static str> {
    match reqwest::Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            let has_secret = !url.username().is_empty() || url.password().is_some();
            has_secret
                .then_some("must not hold a user name or password: the key has a place of its own")
        }
        _ => Some("must be an http or https URL"),
    }
}
