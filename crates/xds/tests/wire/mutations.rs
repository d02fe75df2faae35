//! The fuzzers' entries, on what is right but for a few bytes. `AMBIT_MUTATIONS` says how many of each; a fuzzer that is
//! led by coverage goes deeper.

use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, Node},
    fuzzing,
    security::{Authorization, Group, Match, Rules, StringMatch, string_match::MatchType},
    zds::{AddWorkload, WorkloadInfo, WorkloadRequest, workload_request::Payload},
};
use prost::Message;

use crate::{
    scripted::response,
    support::{service, workload},
};

const DEFAULT_RUNS: usize = 2000;

/// Changes some bytes, cuts or doubles a part. Numbers are those of SplitMix64, so every run is the same.
fn mutations(seed: &[u8], entry: fn(&[u8])) {
    let runs = std::env::var("AMBIT_MUTATIONS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(DEFAULT_RUNS);
    let mut state = 0_u64;
    let mut below = |bound: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound.max(1) as u64).expect("small")
    };
    entry(seed);
    for _ in 0..runs {
        let mut input = seed.to_vec();
        for _ in 0..=below(4) {
            let at = below(input.len());
            match below(4) {
                0 => input.truncate(at),
                1 => input.extend_from_within(at..),
                _ if input.is_empty() => {}
                2 => input[at] ^= 1 << below(8),
                _ => input[at] = u8::try_from(below(256)).expect("a byte"),
            }
        }
        entry(&input);
    }
}

#[test]
fn delta_messages() {
    let response = response(ADDRESS_TYPE, "nonce", &[("a", "1"), ("n/s", "2"), ("c", "")], &["gone"]);
    mutations(&response.encode_to_vec(), fuzzing::delta_response);
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".into(), ..Node::default() }),
        type_url: ADDRESS_TYPE.into(),
        initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    let second = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION_TYPE.into(),
        resource_names_subscribe: vec!["*".into(), "n/p".into()],
        resource_names_unsubscribe: vec!["*".into()],
        response_nonce: "1".into(),
        ..DeltaDiscoveryRequest::default()
    };
    let requests = [first.encode_length_delimited_to_vec(), second.encode_length_delimited_to_vec()].concat();
    mutations(&requests, fuzzing::delta_requests);
}

#[test]
fn resources() {
    mutations(&workload("a", 1, "node", Some("n/s")).1.encode_to_vec(), fuzzing::resource);
    mutations(&service("s", 1).1.encode_to_vec(), fuzzing::resource);
    let principals = vec![StringMatch { match_type: Some(MatchType::Prefix("a".into())) }];
    let matches = vec![Match { principals, destination_ports: vec![80], ..Match::default() }];
    let groups = vec![Group { rules: vec![Rules { matches }] }];
    mutations(&Authorization { groups, ..Authorization::default() }.encode_to_vec(), fuzzing::resource);
}

#[test]
fn local_files() {
    let file = "workloads:\n- {uid: u, namespace: n, workloadIps: [10.0.0.1], services: {n/s: {80: 8080}}}\npolicies:\n\
        - {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{principals: [!Exact a]}]]]}\n";
    mutations(file.as_bytes(), fuzzing::local_file);
}

#[test]
fn packets_of_the_node_agent() {
    let info = WorkloadInfo { name: "n".into(), namespace: "s".into(), service_account: "a".into() };
    let add = AddWorkload { uid: "u".into(), workload_info: Some(info) };
    mutations(&WorkloadRequest { payload: Some(Payload::Add(add)) }.encode_to_vec(), fuzzing::zds);
}

#[test]
fn kept_states() {
    mutations(b"AMBITXDS\x01\0\0\0\x02\0\0\0\0\0\0\0", fuzzing::kept_state);
}
