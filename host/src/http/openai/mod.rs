//! Endpoints in the shapes of OpenAI's API, for its SDKs.

pub mod chat;
pub mod completions;
pub mod models;
mod shape;
