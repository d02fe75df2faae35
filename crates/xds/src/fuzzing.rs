//! Entries for fuzzers: each takes any bytes, and must neither panic nor break what it asserts.

mod exchange;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    channel::Nack,
    client::fuzzing::Session,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
    limits, local, security,
    server::{Resources, SubscriptionStream},
    workload, zds,
};

/// Field 1000, a number.
const UNKNOWN_FIELD: &[u8] = &[0xc0, 0x3e, 1];

pub use exchange::{Step, exchange};

/// A response to a client. Every second resource is refused by whoever applies it.
pub fn delta_response(data: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(data) else { return };
    let mut session =
        Session::new(Node::default(), [(ADDRESS_TYPE.to_owned(), true), (AUTHORIZATION_TYPE.to_owned(), false)]);
    let nonce = response.nonce.clone();
    for _ in 0..2 {
        let received = session.read(response.clone());
        let rejected =
            received.delta.resources.iter().step_by(2).map(|r| (r.name.clone(), "no".to_owned())).collect::<Vec<_>>();
        let any = !rejected.is_empty();
        let outcome = session.applied(received, if any { Err(Nack { rejected }) } else { Ok(()) });
        assert_eq!(outcome.answer.response_nonce, nonce, "an answer to another response");
        assert_eq!(outcome.answer.error_detail.is_some(), !outcome.refused.is_empty(), "a refusal without words");
        assert!(!any || outcome.answer.error_detail.is_some(), "a refused resource was acknowledged");
    }
    let opened: usize = session.open().iter().map(|request| request.initial_resource_versions.len()).sum();
    assert!(opened <= response.resources.len(), "more is held than came");
}

/// Responses to a client: length-prefixed, one after another. Every second resource is refused. What the client then says
/// it holds is what it was told and didn't refuse.
pub fn delta_responses(mut data: &[u8]) {
    let watched = [ADDRESS_TYPE, AUTHORIZATION_TYPE];
    let mut session = Session::new(Node::default(), [(watched[0].to_owned(), true), (watched[1].to_owned(), false)]);
    let mut held = watched.map(|_| BTreeMap::new());
    while !data.is_empty() {
        let Ok(response) = DeltaDiscoveryResponse::decode_length_delimited(&mut data) else { return };
        let received = session.read(response.clone());
        let rejected: Vec<_> =
            received.delta.resources.iter().step_by(2).map(|r| (r.name.clone(), "no".to_owned())).collect();
        let verdict = if rejected.is_empty() { Ok(()) } else { Err(Nack { rejected }) };
        let outcome = session.applied(received, verdict);
        assert_eq!(outcome.answer.response_nonce, response.nonce, "an answer to another response");
        let refused: BTreeSet<&str> = outcome.refused.iter().map(|(name, _)| name.as_str()).collect();
        let reason = outcome.answer.error_detail.map(|status| status.message.len());
        assert_eq!(reason.is_some(), !refused.is_empty(), "a refusal without words, or words without one");
        assert!(reason.is_none_or(|bytes| bytes <= limits::MAX_NACK_BYTES + 64), "{reason:?} bytes of words");
        let Some(at) = watched.iter().position(|url| *url == response.type_url) else { continue };
        response.removed_resources.iter().for_each(|name| drop(held[at].remove(name)));
        let named = |name: &str| !name.is_empty() && name.len() <= limits::MAX_NAME_BYTES;
        for resource in response.resources.into_iter().filter(|resource| named(&resource.name)) {
            let refused = refused.contains(resource.name.as_str());
            held[at].insert(resource.name, if refused { String::new() } else { resource.version });
        }
        for request in session.open() {
            let at = watched.iter().position(|url| *url == request.type_url).expect("a type that is watched");
            assert_eq!(request.initial_resource_versions, held[at], "what is held");
        }
    }
}

/// Requests to a server: length-prefixed, one after another on one stream.
pub fn delta_requests(mut data: &[u8]) {
    let resources = Resources::new();
    let mut stream = SubscriptionStream::new(&Node::default());
    while !data.is_empty() {
        let Ok(request) = DeltaDiscoveryRequest::decode_length_delimited(&mut data) else { return };
        if stream.request(request).is_err() {
            return;
        }
        // Bounded: every response settles something that is owed.
        for _ in 0..64 {
            if !stream.is_due(&resources) || stream.next_response(&resources).is_err() {
                break;
            }
        }
    }
}

/// The content of resources.
pub fn resource(data: &[u8]) {
    if let Ok(address) = workload::Address::decode(data) {
        let later = [address.encode_to_vec(), UNKNOWN_FIELD.to_vec()].concat();
        assert_eq!(
            workload::Address::decode(later.as_slice()).as_ref(),
            Ok(&address),
            "a later version's fields matter"
        );
        assert_eq!(workload::Address::decode(address.encode_to_vec().as_slice()), Ok(address), "it changed on its way");
    }
    if let Ok(authorization) = security::Authorization::decode(data) {
        let rules = authorization.policy().map(|policy| policy.spec.rules.unwrap_or_default().len());
        assert!(rules.unwrap_or(0) <= limits::MAX_RULES_OF_GROUPS, "more rules than allowed");
        let again = security::Authorization::decode(authorization.encode_to_vec().as_slice());
        assert_eq!(again, Ok(authorization), "it changed on its way");
    }
}

/// A local file.
pub fn local_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match local::load_text("fuzz", text) {
        Ok(deltas) => assert_eq!(deltas.len(), 2, "policies and addresses"),
        Err(error) => assert!(!error.to_string().is_empty(), "an error without words"),
    }
}

/// Packets of the node agent and of node proxies.
pub fn zds(data: &[u8]) {
    if let Ok(request) = zds::WorkloadRequest::decode(data) {
        let again = zds::WorkloadRequest::decode(request.encode_to_vec().as_slice());
        assert_eq!(again, Ok(request), "it changed on its way");
    }
    if let Ok(response) = zds::WorkloadResponse::decode(data) {
        let again = zds::WorkloadResponse::decode(response.encode_to_vec().as_slice());
        assert_eq!(again, Ok(response), "it changed on its way");
    }
    let _ = zds::ZdsHello::decode(data);
}

/// A kept state.
pub fn kept_state(data: &[u8]) {
    crate::client::fuzzing::kept_state(data);
}
