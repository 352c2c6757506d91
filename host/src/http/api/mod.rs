//! The service's own endpoints.

pub mod audit;
pub mod budgets;
pub mod credit;
pub mod customers;
pub mod generate;
pub mod health;
pub mod keys;
pub mod models;
pub mod reload;
pub mod usage;

use serde::Deserialize;

use super::error::ApiError;

pub use crate::clock::rfc3339;

/// Rows of a page, where the request does not say.
const PAGE: u32 = 100;
/// Most rows of a page.
const LARGEST_PAGE: u32 = 1000;

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Page {
    /// After this place.
    after: i64,
    /// At most so many.
    limit: Option<u32>,
}

/// Which part of a list of what customers have.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PageOf {
    /// The customer whose rows; all for the operator.
    customer_id: Option<i64>,
    /// After this place.
    after: i64,
    /// At most so many.
    limit: Option<u32>,
}

/// Most rows to return, where so many are asked for.
fn limit(asked: Option<u32>) -> Result<u32, ApiError> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=LARGEST_PAGE => Ok(limit),
        _ => Err(ApiError::invalid(
            "limit",
            format!("must be from 1 to {LARGEST_PAGE}"),
        )),
    }
}
