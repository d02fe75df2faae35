//! Tests with real sockets and real TLS on loopback, and of the pure parts by tables.

pub(crate) mod fixture;

mod account;
mod balance;
mod explain;
mod guard;
mod inbound;
mod live;
mod next_hop;
mod on_demand;
mod outbound;
mod plaintext;
mod reach;
mod review;
mod route;
mod self_proxy;
mod socks;
mod trust;
