//! Why there is no answer.

use std::fmt::Display;

use crate::{Error, ErrorKind};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The URL or a header cannot be sent.
    Invalid(String),
    /// The operator has not granted this host to the model, or no more requests.
    Denied,
    /// The upstream could not be reached: nothing was sent.
    Unreachable(String),
    /// The answer did not come within the time allowed.
    Timeout,
    /// The answer is longer than allowed.
    TooLarge,
    /// The connection broke, or what came is not what was to come.
    Broken(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let unreachable = "the model's upstream cannot be reached";
        let broken = "the model's upstream sent no usable answer";
        match failure {
            Failure::Invalid(detail) => {
                Error::new(ErrorKind::Internal, "the model is not configured correctly")
                    .code("invalid_upstream_request")
                    .detail(detail)
            }
            Failure::Denied => Error::new(ErrorKind::Upstream, unreachable)
                .code("not_granted")
                .detail(
                    "the plugin asked for a host that its model is not granted, or for more than \
                     limits.upstream_requests",
                ),
            Failure::Unreachable(detail) => Error::new(ErrorKind::Upstream, unreachable)
                .code("upstream_unreachable")
                .detail(detail),
            Failure::Timeout => Error::new(
                ErrorKind::Timeout,
                "the model's upstream did not answer in time",
            ),
            Failure::TooLarge => Error::new(ErrorKind::Upstream, broken)
                .code("upstream_answer_too_large")
                .detail("the answer is longer than allowed"),
            Failure::Broken(detail) => Error::new(ErrorKind::Upstream, broken)
                .code("upstream_answer_broken")
                .detail(detail),
        }
    }
}

/// The error of an answer that makes no sense: [`Failure::Broken`].
pub fn unusable(why: impl Display) -> Error {
    Failure::Broken(why.to_string()).into()
}
