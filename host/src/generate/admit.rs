//! Admitting: what a request needs of which limits.

use std::num::NonZeroU32;

use super::{Ask, Error, Generator, tokens};
use crate::config::Requests;
use crate::limits::{Demand, Limit, Permit, Standing, Subject, Unit};
use crate::models::Model;
use crate::store::keys::Key;

impl Generator {
    /// Takes what the request needs of all its limits.
    ///
    /// # Errors
    /// When one of them does not leave it, now or ever.
    pub(super) fn admit(&self, ask: &Ask, model: &Model) -> Result<(Vec<Standing>, Permit), Error> {
        let limits = limits(&self.requests, &ask.key, model);
        let tokens = tokens::reserved(ask, model);
        let too_low = limits
            .iter()
            .find(|limit| limit.unit == Unit::Tokens && limit.most.get() < tokens);
        if let Some(&limit) = too_low {
            return Err(Error::ExceedsTokenLimit { tokens, limit });
        }
        let demand = Demand { limits, tokens };
        self.limits.admit(demand).map_err(|refusal| {
            self.metrics.refused(&model.spec.name, "rate_limited");
            Error::Limited(Box::new(refusal))
        })
    }
}

/// The limits that hold for the key at the model: of its own or as configured,
/// but no more than the model has for any key; and those of its customer.
fn limits(requests: &Requests, key: &Key, model: &Model) -> Vec<Limit> {
    let (of_model, of_customer) = (&model.spec.limits, &requests.customer);
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
        (customer, Unit::Requests, of_customer.per_minute),
        (customer, Unit::Tokens, of_customer.tokens_per_minute),
        (customer, Unit::Concurrent, of_customer.concurrent),
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
