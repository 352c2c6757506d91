//! The integration tests: the built server, driven through HTTP as by a client.

mod harness;

mod bad_input;
mod billing;
mod component;
mod customers;
mod dashboard;
mod generate;
mod keys;
mod limits;
mod models;
mod openai;
mod plugin;
mod process;
mod reload;
mod telemetry;
mod tidy;
mod usage;
