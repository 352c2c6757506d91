//! Admitting: what a request needs of which limits.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Ask, Error, Generator, tokens};
use crate::config::Requests;
use crate::limits::{self, Demand, Limit, Permit, Standing, Subject, Unit};
use crate::models::Model;
use crate::store::keys::Key;

/// How long after its deadline a request is settled at the latest, but for a disk
/// that hangs.
const SETTLING: Duration = Duration::from_secs(5);

impl Generator {
    /// Takes what the request needs of all its limits.
    ///
    /// # Errors
    /// When one of them does not leave it, now or ever.
    pub(super) async fn admit(
        &self,
        ask: &Ask,
        model: &Model,
    ) -> Result<(Vec<Standing>, Permit), Error> {
        let limits = of(&self.requests, &ask.key, model);
        let tokens = tokens::reserved(ask, model);
        let too_low = limits
            .iter()
            .find(|limit| limit.unit == Unit::Tokens && limit.most.get() < tokens);
        if let Some(&limit) = too_low {
            return Err(Error::ExceedsTokenLimit { tokens, limit });
        }
        let timeout = Duration::from_millis(model.spec.limits.timeout_ms.into());
        let demand = Demand {
            request_id: ask.request_id.clone(),
            customer_id: ask.key.customer_id,
            limits,
            tokens,
            lease: timeout + SETTLING,
        };
        self.limits.admit(demand).await.map_err(|error| {
            let (reason, error) = match error {
                limits::Error::Refused(refusal) => ("rate_limited", Error::Limited(refusal)),
                limits::Error::Away => ("limits_unavailable", Error::LimitsAway),
            };
            self.metrics.refused(&model.spec.name, reason);
            error
        })
    }
}

/// The limits that hold for the key at the model: of its own or as configured,
/// but no more than the model has for any key; and those of its customer, of its own
/// or as configured.
fn of(requests: &Requests, key: &Key, model: &Model) -> Vec<Limit> {
    let (of_model, of_customer) = (&model.spec.limits, &key.customer_limits);
    let of_any_customer = &requests.customer;
    let subject = Subject::Key {
        key: key.id,
        model: model.spec.id,
    };
    let customer = Subject::Customer(key.customer_id);
    let least = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
    let (tokens, concurrent) = (key.limits.tokens, key.limits.concurrent);
    let all = [
        (
            subject,
            Unit::Requests,
            least(Some(key.rate_limit), of_model.requests_per_minute),
        ),
        (
            subject,
            Unit::Tokens,
            least(
                tokens.or(requests.tokens_per_minute),
                of_model.tokens_per_minute,
            ),
        ),
        (
            subject,
            Unit::Concurrent,
            least(concurrent.or(requests.concurrent), of_model.concurrent),
        ),
        (
            customer,
            Unit::Requests,
            of_customer.requests.or(of_any_customer.per_minute),
        ),
        (
            customer,
            Unit::Tokens,
            of_customer.tokens.or(of_any_customer.tokens_per_minute),
        ),
        (
            customer,
            Unit::Concurrent,
            of_customer.concurrent.or(of_any_customer.concurrent),
        ),
    ];
    let limit = |(subject, unit, most): (Subject, Unit, Option<u32>)| {
        Some(Limit {
            subject,
            unit,
            most: NonZeroU32::new(most?).unwrap_or(NonZeroU32::MIN),
        })
    };
    all.into_iter().filter_map(limit).collect()
}
