//! What a control plane says, and what is kept of it.

use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
    fuzzing::{self, Step},
    security::{Authorization, Group, Match, Rules, StringMatch, string_match::MatchType},
    workload::{Address, Any, Service, Workload, address::Type},
};
use arbitrary::{Result, Unstructured};
use prost::Message as _;

use super::mesh;
use crate::list;

const MAX_STEPS: usize = 48;

/// The content of resources; the store that shows it is `mesh_view`'s.
pub(super) fn resource(bytes: &[u8]) {
    fuzzing::resource(bytes);
    ambit_mesh::view::fuzzing::address(bytes);
}

/// A script for a server, a client and the streams between them.
pub(super) fn exchange(bytes: &[u8]) {
    let u = &mut Unstructured::new(bytes);
    let Ok(on_demand) = u.arbitrary() else { return };
    if let Ok(steps) = list(u, MAX_STEPS, step) {
        fuzzing::exchange(on_demand, steps);
    }
}

fn step(u: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match u.int_in_range(0..=15)? {
        0..=2 => {
            let (name, value) = mesh::address(u)?;
            Step::Put(true, name, value)
        }
        3 => Step::Put(false, policy(u)?, u.arbitrary::<[u8; 2]>()?.to_vec()),
        4 => Step::Remove(true, mesh::address(u)?.0),
        5 => Step::Remove(false, policy(u)?),
        6 | 7 => Step::Demand(mesh::address(u)?.0),
        8 => Step::Demand((*u.choose(&["/10.0.0.1", "/10.0.0.2", "far/10.0.0.1", "nothing"])?).to_owned()),
        9 => Step::Reconnect,
        10..=12 => Step::Respond,
        _ => Step::Request,
    })
}

fn policy(u: &mut Unstructured<'_>) -> Result<String> {
    u.choose(&["ns/p", "ns/q", "/r"]).map(|name| (*name).to_owned())
}

fn workload() -> Vec<u8> {
    let workload = Workload {
        uid: "Kubernetes//Pod/ns/a".to_owned(),
        name: "a".to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        services: [("ns/web".to_owned(), Default::default())].into(),
        authorization_policies: vec!["ns/p".to_owned()],
        ..Workload::default()
    };
    Address { r#type: Some(Type::Workload(workload)) }.encode_to_vec()
}

fn service() -> Vec<u8> {
    let service = Service {
        name: "web".to_owned(),
        namespace: "ns".to_owned(),
        hostname: "web".to_owned(),
        load_balancing: Some(Default::default()),
        ..Service::default()
    };
    Address { r#type: Some(Type::Service(service)) }.encode_to_vec()
}

fn authorization() -> Vec<u8> {
    let principals = vec![StringMatch { match_type: Some(MatchType::Prefix("a".to_owned())) }];
    let matches = vec![Match { principals, destination_ports: vec![80], ..Match::default() }];
    let groups = vec![Group { rules: vec![Rules { matches }] }];
    Authorization { name: "p".to_owned(), namespace: "ns".to_owned(), groups, ..Authorization::default() }
        .encode_to_vec()
}

pub(super) fn resource_seeds() -> Vec<Vec<u8>> {
    vec![workload(), service(), authorization()]
}

pub(super) fn response_seeds() -> Vec<Vec<u8>> {
    let resource = |type_url: &str, name: &str, value: Vec<u8>| Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value }),
        aliases: vec!["/10.0.0.1".to_owned()],
    };
    let response = |type_url: &str, resources, removed: &[&str]| DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources,
        type_url: type_url.to_owned(),
        nonce: "n".to_owned(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
    };
    let addresses = [
        resource(ADDRESS_TYPE, "Kubernetes//Pod/ns/a", workload()),
        resource(ADDRESS_TYPE, "ns/web", service()),
        resource(AUTHORIZATION_TYPE, "strange", Vec::new()),
    ];
    let responses = [
        response(ADDRESS_TYPE, addresses.to_vec(), &["gone"]),
        response(AUTHORIZATION_TYPE, vec![resource(AUTHORIZATION_TYPE, "ns/p", authorization())], &[]),
        response(ADDRESS_TYPE, Vec::new(), &["ns/web"]),
        response("other", Vec::new(), &[]),
    ];
    let each = responses.iter().map(|response| response.encode_length_delimited_to_vec()).collect::<Vec<_>>();
    each.iter().cloned().chain([each.concat()]).collect()
}

pub(super) fn request_seeds() -> Vec<Vec<u8>> {
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: "ztunnel~10.0.0.1~a.ns~ns.svc.cluster.local".to_owned(), ..Node::default() }),
        type_url: ADDRESS_TYPE.to_owned(),
        initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    let second = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        resource_names_subscribe: vec!["*".to_owned(), "ns/p".to_owned()],
        resource_names_unsubscribe: vec!["*".to_owned()],
        response_nonce: "1".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let [first, second] = [first, second].map(|request| request.encode_length_delimited_to_vec());
    vec![[&first[..], &second].concat(), first, second]
}

pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "workloads:\n- {uid: u, namespace: n, workloadIps: [10.0.0.1], protocol: HBONE, services: {n/s: {80: 8080}}}\n",
        "services:\n- {name: s, namespace: n, hostname: s.n, vips: [/10.0.0.2], ports: {80: 8080}}\n",
        "policies:\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{principals: [!Exact a]}]]]}\n",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).chain([texts.concat().into_bytes()]).collect()
}

pub(super) fn state_seeds() -> Vec<Vec<u8>> {
    // A body: scope, time, and a type with a resource.
    let resource = [&b"\x0a\x01a\x12\x011\x1a\x02"[..], b"xy"].concat();
    let entry = [&[0x0a, 1, b't', 0x12, u8::try_from(resource.len()).expect("short")][..], &resource].concat();
    let body = [&b"\x0a\0\x10\x05\x1a"[..], &[u8::try_from(entry.len()).expect("short")], &entry].concat();
    vec![body, b"AMBITXDS\x01\0\0\0\x02\0\0\0\0\0\0\0".to_vec()]
}
