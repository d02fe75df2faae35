//! The waypoint on real traffic: HBONE in and out over loopback, real certificates, real policies, raw bytes.

mod backend;
mod denial;
mod failure;
mod http1;
mod http2;
mod identity;
mod load;
mod mesh;
mod server_first;
mod tcp;
mod workloads;
