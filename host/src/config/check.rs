//! Rules across the values of a configuration; pure, and returns every problem.

use std::collections::HashSet;
use std::fmt;

use reqwest::Url;
use reqwest::header::{self, HeaderName};
use secrecy::ExposeSecret;

use super::reference::is_sha256;
use super::{
    Config, HIGHEST_LIMIT, HIGHEST_RATE, Model, ModelLimits, POSTGRES, Reference, SQLITE, Webhook,
};

/// Headers that have a meaning of their own, and can hold no key.
const NO_KEY_HEADERS: [HeaderName; 8] = [
    header::ACCEPT,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// The most that `components.instances` may be: address space ends.
const INSTANCES_CEILING: u32 = 10_000;
/// What `components.stack_kib` may be.
const STACK_KIB: std::ops::RangeInclusive<usize> = 64..=8192;

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
    let (requests, customer) = (&config.requests, &config.requests.customer);
    // keys that are given none of their own get it
    if !(1..=HIGHEST_RATE).contains(&requests.per_minute) {
        report(
            "requests.per_minute".into(),
            &format!("must be from 1 to {HIGHEST_RATE}"),
        );
    }
    for (field, most) in [
        ("tokens_per_minute", requests.tokens_per_minute),
        ("concurrent", requests.concurrent),
        ("customer.per_minute", customer.per_minute),
        ("customer.tokens_per_minute", customer.tokens_per_minute),
        ("customer.concurrent", customer.concurrent),
    ] {
        if let Some(problem) = of_limit(most) {
            report(format!("requests.{field}"), &problem);
        }
    }
    if config.database.keep_usage_days == Some(0) {
        report("database.keep_usage_days".into(), "must be at least 1");
    }
    for (field, is_none) in [
        ("header_timeout_ms", requests.header_timeout_ms == 0),
        ("body_timeout_ms", requests.body_timeout_ms == 0),
        ("max_body_bytes", requests.max_body_bytes == 0),
    ] {
        if is_none {
            report(format!("requests.{field}"), "must be at least 1");
        }
    }
    if !(1..=INSTANCES_CEILING).contains(&config.components.instances) {
        report(
            "components.instances".into(),
            &format!("must be from 1 to {INSTANCES_CEILING}"),
        );
    }
    if !STACK_KIB.contains(&config.components.stack_kib) {
        let (least, most) = STACK_KIB.into_inner();
        report(
            "components.stack_kib".into(),
            &format!("must be from {least} to {most}"),
        );
    }
    if let Some(problem) = config.stripe.api_base.as_deref().and_then(of_url) {
        report("stripe.api_base".into(), problem);
    }
    for (field, problem) in of_webhook(&config.webhook) {
        report(format!("webhook.{field}"), problem);
    }
    if let Some(url) = &config.database.url
        && !POSTGRES
            .into_iter()
            .chain([SQLITE])
            .any(|scheme| url.expose_secret().starts_with(scheme))
    {
        report(
            "DATABASE_URL".into(),
            "must begin with postgres:// or sqlite:",
        );
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
            report(at(&field), &message);
        }
    }
    found
}

/// Problems of one model: field and message.
fn of_model(model: &Model) -> Vec<(String, String)> {
    let mut found = of_limits(&model.limits);
    let mut report =
        |field: &str, message: &str| found.push((field.to_owned(), message.to_owned()));
    if let Err(problem) = key_header(&model.api_key_header) {
        report("api_key_header", problem);
    }
    // what names an unset variable is no URL yet
    if model.unavailable.is_some() {
        return found;
    }
    if model.is_remote()
        && let Err(problem) = Reference::parse(&model.plugin)
    {
        report("plugin", problem);
    }
    if let Some(sha256) = &model.sha256 {
        if !model.is_component() {
            report("sha256", "is of a component, and the plugin is none");
        } else if !is_sha256(sha256) {
            report("sha256", "must be 64 lower-case hex digits");
        }
    }
    if let Some(auth) = &model.registry_auth {
        if !model.is_remote() {
            report(
                "registry_auth",
                "is for a registry, and the plugin is in none",
            );
        } else if !auth.expose_secret().contains(':') {
            report("registry_auth", "must be user:password");
        }
    }
    if let Some(problem) = model.api_url.as_deref().and_then(of_url) {
        report("api_url", problem);
    }
    for (field, is_given) in [
        ("api_url", model.api_url.is_some()),
        ("api_key", model.api_key.is_some()),
        ("grants", !model.grants.is_empty()),
    ] {
        if is_given && !model.is_component() {
            report(
                field,
                "is for a component, and the plugin is no file that ends in .wasm and no oci://…",
            );
        } else if is_given && model.api_url.is_none() {
            report(field, "belongs to an api_url, and there is none");
        }
    }
    for (index, grant) in model.grants.iter().enumerate() {
        if let Some(problem) = of_origin(grant) {
            report(&format!("grants[{index}]"), problem);
        }
    }
    found
}

fn of_limits(limits: &ModelLimits) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut report =
        |field: &str, message: String| found.push((format!("limits.{field}"), message));
    let at_least_one = [
        ("max_prompt_bytes", limits.max_prompt_bytes),
        ("max_new_tokens", limits.max_new_tokens as usize),
        ("timeout_ms", limits.timeout_ms as usize),
        ("parallel", limits.parallel),
        ("queue", limits.queue),
        ("cpu_ms", limits.cpu_ms as usize),
        (
            "requests_per_instance",
            limits.requests_per_instance as usize,
        ),
        ("request_bytes", limits.request_bytes),
        ("response_bytes", limits.response_bytes),
    ];
    for (field, value) in at_least_one {
        if value == 0 {
            report(field, "must be at least 1".to_owned());
        }
    }
    let up_to = [
        (
            "memory_mib",
            limits.memory_mib,
            ModelLimits::MEMORY_CEILING_MIB,
        ),
        (
            "table_elements",
            limits.table_elements,
            ModelLimits::TABLE_CEILING,
        ),
        (
            "header_bytes",
            limits.header_bytes,
            ModelLimits::HEADER_CEILING,
        ),
    ];
    for (field, value, most) in up_to {
        if !(1..=most).contains(&value) {
            report(field, format!("must be from 1 to {most}"));
        }
    }
    for (field, most) in [
        ("requests_per_minute", limits.requests_per_minute),
        ("tokens_per_minute", limits.tokens_per_minute),
        ("concurrent", limits.concurrent),
    ] {
        if let Some(problem) = of_limit(most) {
            report(field, problem);
        }
    }
    found
}

/// What is wrong with how much may be asked, if that is limited.
fn of_limit(most: Option<u32>) -> Option<String> {
    let is_fine = most.is_none_or(|most| (1..=HIGHEST_LIMIT).contains(&most));
    (!is_fine).then(|| format!("must be from 1 to {HIGHEST_LIMIT}"))
}

fn of_webhook(webhook: &Webhook) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    if let Some(problem) = webhook.url.as_deref().and_then(of_url) {
        found.push(("url", problem));
    }
    match &webhook.secret {
        None if webhook.url.is_some() => found.push(("secret", "is missing: notices are signed")),
        Some(secret) if Webhook::key(secret).is_none() => {
            found.push(("secret", "must be whsec_ and 24 to 64 bytes in Base64"));
        }
        _ => {}
    }
    found
}

/// The header that a key may be sent in.
fn key_header(name: &str) -> Result<HeaderName, &'static str> {
    let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is no header's name")?;
    if NO_KEY_HEADERS.contains(&header) {
        return Err("has a meaning of its own: a key cannot be sent in it");
    }
    Ok(header)
}

fn of_url(url: &str) -> Option<&'static str> {
    match Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            let has_secret = !url.username().is_empty() || url.password().is_some();
            has_secret
                .then_some("must not hold a user name or password: the key has a place of its own")
        }
        _ => Some("must be an http or https URL"),
    }
}

/// A grant is of everything at a scheme, host and port; a path in it would only
/// seem to narrow it.
fn of_origin(text: &str) -> Option<&'static str> {
    of_url(text).or_else(|| {
        let url = Url::parse(text).ok()?;
        let is_more = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
        is_more.then_some("must be scheme, host and port alone, such as https://files.example")
    })
}
