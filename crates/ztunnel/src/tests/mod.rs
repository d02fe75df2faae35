//! Tests with real sockets and real TLS on loopback, and of the pure parts by tables.

pub(crate) mod fixture;

mod balance;
mod guard;
mod inbound;
mod live;
mod outbound;
mod reach;
mod route;
mod socks;
