//! What the operators' ports of all proxies have in common: a small HTTP/1.1 server, who may ask it, and log levels.
//!
//! What it does: few connections, small requests, answers under bounds.
//! What it refuses to do: know what is shown, or let a web page in.
#![forbid(unsafe_code)]

pub mod limits;
mod logging;
mod server;

pub use logging::{level_request, logging};
pub use server::{check_origin, reply, serve, text};
