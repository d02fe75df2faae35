//! `ambit waypoint` as a process: configuration and certificate from a control plane in the test's own process, over real TLS
//! and gRPC; clients and destinations by real HBONE.
//!
//! [`kubernetes`] has the whole way instead: a real API server, the control plane as a process, and the waypoint.
//!
//! Every test has addresses of its own in 127.0.0.0/8, so that port 15008 is free to all of them.

mod control_plane;
mod drain;
mod fail_closed;
mod kubernetes;
mod mesh;
mod process;
mod serve;
mod world;
