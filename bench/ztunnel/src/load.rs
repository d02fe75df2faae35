//! The client and the server that every contender carries: one thread each, as little work per byte as can be.

mod client;
mod samples;
mod server;

pub(crate) use client::{Outcome, Until, bulk, connect, exchange, hold};
pub(crate) use server::Server;

/// Port on which the server sends back what it gets.
pub(crate) const ECHO_PORT: u16 = 7000;
/// Port on which the server drops what it gets.
pub(crate) const SINK_PORT: u16 = 7001;
