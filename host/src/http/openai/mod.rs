//! Endpoints in the shapes of OpenAI's API, for its SDKs.

pub mod completions;
pub mod models;
