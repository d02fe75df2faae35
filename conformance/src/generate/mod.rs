//! Random policies and requests, biased to near misses: policies are made from the facts of a few requests, and requests
//! are those with a factor or two moved.

mod facts;
mod pattern;
mod policy;
mod target;
mod words;

use std::collections::BTreeMap;

use ambit_policy::{PathNormalization, envoy::Dialect};

use crate::{
    case::{PolicySet, Request},
    random::Random,
};

/// Requests that policies are made from.
const BASES: usize = 2;

/// A set of policies and requests to what it protects.
pub fn scene(random: &mut Random, requests: usize) -> (PolicySet, Vec<Request>) {
    let trust_domains = random.pick(words::MESHES).iter().map(ToString::to_string).collect();
    let is_http = random.percent(85);
    let paths = match random.below(10) {
        0 => PathNormalization::None,
        1 => PathNormalization::MergeSlashes,
        2 => PathNormalization::DecodeAndMergeSlashes,
        _ => PathNormalization::Base,
    };
    let mut set = PolicySet {
        policies: Vec::new(),
        trust_domains,
        providers: BTreeMap::new(),
        several_providers: random.percent(70),
        is_http,
        paths,
        dialect: if random.percent(50) { Dialect::Strict } else { Dialect::Istio },
    };
    let bases: Vec<_> = (0..BASES).map(|_| facts::any(random, &set)).collect();
    let mut values = policy::Written::default();
    policy::add(random, &mut set, &bases, &mut values);
    let mut made = Vec::with_capacity(requests);
    while made.len() < requests {
        let base = random.pick(&bases).clone();
        // Neighbours share their connection, so that most requests need no new one.
        let mut connected = base.clone();
        if random.percent(60) {
            facts::move_connection(random, &mut connected, &set, &values);
        }
        for _ in 0..random.between(1, 6).min(requests - made.len()) {
            let mut request = connected.clone();
            if set.is_http {
                for _ in 0..[0, 1, 1, 1, 1, 1, 2, 2, 3][random.below(9)] {
                    facts::move_request(random, &mut request, &values);
                }
            }
            facts::settle(random, &mut request);
            made.push(request);
        }
    }
    (set, made)
}
