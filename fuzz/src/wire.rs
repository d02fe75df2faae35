//! What comes to the node proxy over a wire or out of a file. All of these targets are in one binary
//! (`targets/wire.rs`); its inputs are bytes, or scripts that [`arbitrary`] reads out of them.

mod certificates;
mod dns;
mod hbone;
mod mesh;
mod node;
mod proxy;
mod xds;

use std::{env, fs, path::Path};

/// Something to fuzz.
#[derive(Debug)]
pub struct Target {
    /// As `cargo xtask fuzz` knows it.
    pub name: &'static str,
    /// Takes an input, and panics when something doesn't hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Names the target to run.
const CHOICE: &str = "AMBIT_FUZZ_TARGET";

/// Every one of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "hbone_headers", run: hbone::headers, seeds: hbone::header_seeds },
    Target { name: "hpack", run: hbone::hpack, seeds: hbone::hpack_seeds },
    Target { name: "http2_peer", run: ambit_hbone::fuzzing::connection, seeds: hbone::connection_seeds },
    Target { name: "http2_pieces", run: ambit_hbone::fuzzing::cut_connection, seeds: hbone::cut_seeds },
    Target { name: "http2_ends", run: ambit_hbone::fuzzing::connection_ends, seeds: no_seeds },
    Target { name: "proxy_protocol", run: proxy::written, seeds: no_seeds },
    Target { name: "socks5", run: ambit_ztunnel::fuzzing::socks5, seeds: proxy::socks5_seeds },
    Target { name: "zds", run: node::zds, seeds: no_seeds },
    Target { name: "dns_query", run: dns::query, seeds: dns::query_seeds },
    Target { name: "dns_reply", run: dns::reply, seeds: dns::reply_seeds },
    Target { name: "xds_responses", run: ambit_xds::fuzzing::delta_responses, seeds: xds::response_seeds },
    Target { name: "xds_requests", run: ambit_xds::fuzzing::delta_requests, seeds: xds::request_seeds },
    Target { name: "xds_exchange", run: xds::exchange, seeds: no_seeds },
    Target { name: "xds_resource", run: xds::resource, seeds: xds::resource_seeds },
    Target { name: "local_file", run: ambit_xds::fuzzing::local_file, seeds: xds::file_seeds },
    Target { name: "kept_state", run: ambit_xds::fuzzing::kept_state, seeds: xds::state_seeds },
    Target { name: "mesh_view", run: mesh::changes, seeds: no_seeds },
    Target { name: "certificates", run: certificates::any, seeds: certificates::seeds },
    Target { name: "logging", run: node::logging, seeds: node::logging_seeds },
];

/// The target that the environment names. Its seeds are put where the corpus is, if that is given and empty.
///
/// # Panics
/// When none is named, or one that isn't there; and when the seeds can't be written.
#[must_use]
pub fn chosen() -> &'static Target {
    let name = env::var(CHOICE).unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        panic!("{CHOICE} must name one of {:?}", TARGETS.map(|target| target.name));
    };
    let folder = env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let empty = |folder: &Path| folder.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if let Some(folder) = folder.as_deref().map(Path::new).filter(|folder| empty(folder)) {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed).expect("a folder that can be written to");
        }
    }
    target
}

/// Scripts are better made up by the fuzzer.
fn no_seeds() -> Vec<Vec<u8>> {
    Vec::new()
}

/// Takes bytes apart: each part comes behind a byte with its length. What is left at the end is a part, too.
fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (part, rest) = rest.split_at(usize::from(length).min(rest.len()));
        parts.push(part);
        bytes = rest;
    }
    parts
}

/// The opposite of [`parts`].
fn joined<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.push(u8::try_from(part.as_ref().len()).expect("short parts"));
        bytes.extend_from_slice(part.as_ref());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_takes_its_seeds_and_what_is_left_of_them() {
        for target in TARGETS {
            for seed in (target.seeds)() {
                assert!(!seed.is_empty(), "{}", target.name);
                (target.run)(&seed);
                (target.run)(&seed[..seed.len() / 2]);
            }
            (target.run)(&[]);
        }
    }
}
