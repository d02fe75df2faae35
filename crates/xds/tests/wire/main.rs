//! Client and server on real sockets, with real TLS on the loopback interface.

mod certificates;
mod connecting;
mod discovery;
mod kept_state;
mod mutations;
mod on_demand;
mod scripted;
mod support;
