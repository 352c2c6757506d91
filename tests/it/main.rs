//! The integration tests: the built server, driven through HTTP as by a client.

mod harness;

mod audit;
mod bad_input;
mod billing;
mod budgets;
mod chat;
mod component;
mod connections;
mod copy;
mod credit;
mod customers;
mod dashboard;
mod disconnects;
mod distribution;
mod generate;
mod holds;
mod hot;
mod idempotency;
mod keys;
mod limits;
mod models;
mod network;
mod openai;
mod plugin;
mod process;
mod queue;
mod reload;
mod replicas;
mod sandbox;
mod servers;
mod stream;
mod telemetry;
mod tidy;
mod usage;
mod webhook;
