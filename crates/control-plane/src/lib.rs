//! The control plane: where resources come from, what must run because of them, and what the proxies are told.
//!
//! What it does: [`local`] reads files, plans pods and addresses like the small part of Kubernetes that a laptop
//! needs, watches its files, and pushes the mesh that `ambit-mesh` derives to the proxies; [`kubernetes`] does the same from
//! an API server, where [`authority`] says who may ask for what and [`webhook`] judges what is written; [`keys`] fetches the
//! keys of tokens' issuers.
//! What it refuses to do: see a workload's packet, start a process, or touch a network namespace. It asks for pods by
//! [`local::PodCommand`] and is told what became of them.
#![forbid(unsafe_code)]

pub mod authority;
mod conditions;
pub mod keys;
pub mod kubernetes;
pub mod limits;
pub mod local;
mod objects;
pub mod waypoints;
pub mod webhook;
