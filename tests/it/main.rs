//! The integration tests: the built server, driven through HTTP as by a client.

mod harness;

mod bad_input;
mod billing;
mod budgets;
mod component;
mod credit;
mod customers;
mod dashboard;
mod generate;
mod holds;
mod idempotency;
mod keys;
mod limits;
mod models;
mod openai;
mod process;
mod reload;
mod stream;
mod telemetry;
mod tidy;
mod usage;
