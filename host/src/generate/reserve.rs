//! Reserving: before its model is asked, a request that anything caps has the
//! most that it can cost held for it. What is not there is left out: the answer
//! is shorter then, and says why.

use plugin_sdk::{CountSource, TokenEstimate};
use time::Duration;

use super::work::Admitted;
use super::{Error, Generator, tokens};
use crate::money::NanoDollars;
use crate::store::ledger::{Cap, Reservation, Reserved};

/// How long after its deadline a hold is one that somebody has forgotten.
const FORGOTTEN: Duration = Duration::minutes(1);

/// The most that a request may be charged for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    /// Tokens of prompt.
    pub(super) prompt_tokens: u32,
    /// Tokens of answer.
    pub(super) new_tokens: u32,
}

/// What is held for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// None if nothing caps the request; 0 until the reservation is made.
    pub(super) held: Option<NanoDollars>,
    /// What made the answer's bound lower than it was.
    pub(super) capped_by: Option<Cap>,
}

impl Bounds {
    /// Of a request whose prompt was estimated so.
    pub(super) fn new(admitted: &Admitted, estimate: TokenEstimate, new_tokens: u32) -> Self {
        let prompt_tokens = match estimate.source {
            CountSource::Exact => estimate.prompt_tokens,
            CountSource::Estimated => tokens::most_in_prompt(&admitted.ask),
        };
        Self {
            prompt_tokens,
            new_tokens,
        }
    }
}

impl Generator {
    /// Holds what the request can cost within `bounds`, which it lowers to what
    /// there is. `room` is right whenever this is given up.
    ///
    /// # Errors
    /// [`Error::Capped`] when not even one token of answer can be paid.
    pub(super) async fn reserve(
        &self,
        admitted: &Admitted,
        bounds: &mut Bounds,
        room: &mut Room,
    ) -> Result<(), Error> {
        let Admitted { ask, model, at, .. } = admitted;
        let price = model.spec.price_per_million;
        let most = price.of(bounds.prompt_tokens, bounds.new_tokens);
        if most.0 == 0 || !self.store.is_limited(ask.key.customer_id) {
            return Ok(());
        }
        let timeout = Duration::milliseconds(model.spec.limits.timeout_ms.into());
        let least = price.of(bounds.prompt_tokens, 1);
        let reservation = Reservation {
            request_id: ask.request_id.clone(),
            customer_id: ask.key.customer_id,
            api_key_id: ask.key.id,
            most,
            least,
            created_at: *at,
            expires_at: *at + timeout + FORGOTTEN,
        };
        room.held = Some(NanoDollars(0));
        let reserved = self.settler.reserve(reservation).await;
        match reserved.map_err(|_| Error::NotRecorded)? {
            Reserved::Uncapped => room.held = None,
            Reserved::Held { amount, capped_by } => {
                room.held = Some(amount);
                if let Some(cap) = capped_by {
                    let affordable = price.affordable(amount, bounds.prompt_tokens);
                    bounds.new_tokens = affordable.unwrap_or(1).min(bounds.new_tokens);
                    room.capped_by = Some(cap);
                }
            }
            Reserved::Refused { by, left } => {
                room.held = None;
                return Err(Error::Capped { by, left, least });
            }
        }
        Ok(())
    }
}
