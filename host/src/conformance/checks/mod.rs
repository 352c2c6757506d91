//! What is checked. Each check asks the plugin under a script and tells what was
//! expected and what came.

mod answers;
mod endurance;
mod failures;
mod local;
mod streams;
mod tools;
mod unpromised;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Outcome;
use super::subject::{Answer, Manner, Subject, Way};

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it proves, as a sentence about the plugin.
    pub proves: &'static str,
    concerns: Concerns,
    run: fn(&Subject) -> BoxFuture<'_, Verdict>,
}

/// Whom a check concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concerns {
    All,
    Adapters,
    Local,
}

/// What was measured, or why the check is not passed.
type Verdict = Result<Option<String>, Unmet>;

/// Why a check is not passed.
#[derive(Debug)]
enum Unmet {
    Failed(String),
    Skipped(&'static str),
}

impl From<String> for Unmet {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

/// Rows of the table below.
macro_rules! checks {
    ($($name:literal $concerns:ident $run:path: $proves:literal;)*) => {
        &[$(Check {
            name: $name,
            proves: $proves,
            concerns: Concerns::$concerns,
            run: |subject| $run(subject).boxed(),
        }),*]
    };
}

/// All checks, in the order in which they are made.
pub const CHECKS: &[Check] = checks! {
    "describe" All answers::describe: "says what it is";
    "estimate" All answers::estimate: "estimates prompts, or says that it doesn't";
    "empty-prompt" All answers::empty_prompt: "answers an empty prompt or refuses it";
    "other-prompts" All answers::other_prompts: "refuses prompts that it doesn't promise to take";
    "unpromised" All unpromised::refused: "refuses what it doesn't promise and can't follow, and drops nothing";
    "answer" Adapters answers::answer: "passes on the upstream's text and ends once";
    "usage" Adapters answers::usage: "passes on the upstream's counts";
    "missing-usage" Adapters answers::missing_usage: "estimates what the upstream doesn't count, and says so";
    "max-tokens" Adapters answers::max_tokens: "passes on how long an answer may be";
    "stop-strings" Adapters answers::stop_strings: "passes on where an answer stops";
    "tools" Adapters tools::calls: "passes on tools, calls of them and what they answer";
    "coalesced-records" Adapters streams::coalesced: "reads records that come all at once";
    "split-records" Adapters streams::split_records: "reads records that are split at every byte";
    "split-characters" Adapters streams::split_characters: "reads characters that are split";
    "dressed-records" Adapters streams::dressed: "reads records with carriage returns, comments and other fields";
    "first-event" Adapters streams::first_event: "passes on the first word while the upstream holds the rest back";
    "rate-limited" Adapters failures::rate_limited: "reports 429 as rate-limited, with the time to wait";
    "upstream-auth" Adapters failures::upstream_auth: "reports 401 as the operator's fault, not the caller's";
    "upstream-failure" Adapters failures::upstream_failure: "reports 404 and 500 as the upstream's fault";
    "garbage" Adapters failures::garbage: "reports a body that it can't read";
    "cut" Adapters failures::cut: "reports an answer that is cut off, and doesn't end it as if it was whole";
    "stall" Adapters failures::stall: "times out when the upstream says nothing more";
    "secret" Adapters failures::secret: "never sees the operator's key";
    "cancellation" Adapters endurance::cancellation: "leaves the upstream when its caller leaves";
    "local-answer" Local local::answer: "answers prompts in any script, counts tokens and ends once";
    "local-max-tokens" Local local::max_tokens: "keeps to max-tokens";
    "local-stop-strings" Local local::stop_strings: "stops before a stop string";
    "local-first-event" Local local::first_event: "reports words as they are made";
    "local-cancellation" Local local::cancellation: "does nothing for callers that left";
    "concurrency" All endurance::concurrency: "does not mix requests that run at once";
    "growth" All endurance::growth: "answers 1,000 requests without growing";
};

/// Makes a check.
pub async fn make(check: &Check, subject: &Subject) -> Outcome {
    let why = match (check.concerns, subject.way) {
        (Concerns::All, _) | (Concerns::Adapters, Way::Adapter) | (Concerns::Local, Way::Local) => {
            None
        }
        (Concerns::Adapters, Way::Local) => Some("asks no upstream"),
        (Concerns::Adapters, Way::UnknownFormat) => Some("speaks no format that the kit knows"),
        (Concerns::Local, _) => Some("asks an upstream"),
    };
    if let Some(why) = why {
        return Outcome::Skipped(why);
    }
    match (check.run)(subject).await {
        Ok(measured) => Outcome::Passed(measured),
        Err(Unmet::Failed(what)) => Outcome::Failed(what),
        Err(Unmet::Skipped(why)) => Outcome::Skipped(why),
    }
}

/// What came is not what was expected.
fn unmet(manner: Manner, expected: &str, answer: &Answer) -> Unmet {
    Unmet::Failed(format!(
        "{manner}: expected {expected}, got {}",
        answer.shown()
    ))
}
