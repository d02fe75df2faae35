//! The waypoint on real traffic: HBONE in and out over loopback, real certificates, real policies, raw bytes.

mod authn;
mod authorizer;
mod backend;
mod custom;
mod denial;
mod edges_grpc;
mod edges_http1;
mod edges_http2;
mod edges_refused;
mod failure;
mod http1;
mod http2;
mod identity;
mod issuer;
mod load;
mod mesh;
mod operators;
mod routes;
mod server_first;
mod tcp;
mod workloads;
