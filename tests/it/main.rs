//! The integration tests: the built server, driven through HTTP as by a client.

mod harness;

mod customers;
mod generate;
mod keys;
mod limits;
