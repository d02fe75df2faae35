use super::*;
use crate::{ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, limits::MAX_REMEMBERED_CHANGES};

fn delta(type_url: &str, names: &[&str], removed: &[&str]) -> DeltaResponse {
    let resource = |name: &&str| crate::Resource::digested((*name).into(), name.as_bytes().to_vec());
    DeltaResponse {
        type_url: type_url.into(),
        resources: names.iter().map(resource).collect(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn ask(type_url: &str, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..ask(&response.type_url, &[], &[]) }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// The next response, which must be there.
fn next(stream: &mut Stream, resources: &Resources) -> DeltaDiscoveryResponse {
    assert!(stream.is_due(resources));
    stream.next_response(resources).expect("served").expect("due")
}

#[test]
fn a_client_that_comes_back_is_sent_the_difference() {
    let resources = Resources::new();
    resources.apply(&[delta(ADDRESS_TYPE, &["a", "b"], &[])]);
    let version = crate::Resource::digested(String::new(), b"a".to_vec()).version;
    let held = [("a", version.as_str()), ("b", "older"), ("gone", "1"), ("refused", "")];
    let mut request = ask(ADDRESS_TYPE, &[], &[]);
    request.initial_resource_versions = held.map(|(name, version)| (name.to_owned(), version.to_owned())).into();
    let mut stream = Stream::new(&Node::default());
    stream.request(request).expect("taken");
    let response = next(&mut stream, &resources);
    assert_eq!(names(&response), ["b"]);
    assert_eq!(response.removed_resources, ["gone", "refused"]);
}

#[test]
fn every_first_request_is_answered_even_by_nothing() {
    let resources = Resources::new();
    for request in [ask(ADDRESS_TYPE, &[], &[]), ask(ADDRESS_TYPE, &["*"], &[]), ask(ADDRESS_TYPE, &["*"], &["*"])] {
        let mut stream = Stream::new(&Node::default());
        stream.request(request).expect("taken");
        assert!(names(&next(&mut stream, &resources)).is_empty());
        assert!(!stream.is_due(&resources));
    }
}

#[test]
fn one_push_waits_for_its_answer_and_stale_answers_do_not_count() {
    let resources = Resources::new();
    let mut stream = Stream::new(&Node::default());
    stream.request(ask(ADDRESS_TYPE, &[], &[])).expect("taken");
    let first = next(&mut stream, &resources);
    resources.apply(&[delta(ADDRESS_TYPE, &["a"], &[])]);
    assert!(!stream.is_due(&resources), "the first isn't answered yet");
    let stale = DeltaDiscoveryRequest { response_nonce: "stale".into(), ..ask(ADDRESS_TYPE, &[], &[]) };
    stream.request(stale).expect("taken");
    assert!(!stream.is_due(&resources));
    stream.request(ack(&first)).expect("taken");
    let second = next(&mut stream, &resources);
    assert_eq!(names(&second), ["a"]);
    // A refusal is an answer, too; nothing is sent again for it.
    let mut refusal = ack(&second);
    refusal.error_detail = Some(crate::discovery::Status { code: 0, message: "a: no".into() });
    stream.request(refusal).expect("taken");
    assert!(!stream.is_due(&resources));
    resources.apply(&[delta(ADDRESS_TYPE, &["a"], &[])]);
    assert!(!stream.is_due(&resources), "it says what it said before");
}

#[test]
fn workloads_wait_for_the_policies_before_them() {
    let resources = Resources::new();
    let mut stream = Stream::new(&Node::default());
    stream.request(ask(ADDRESS_TYPE, &[], &[])).expect("taken");
    stream.request(ask(AUTHORIZATION_TYPE, &[], &[])).expect("taken");
    let policies = next(&mut stream, &resources);
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    let addresses = next(&mut stream, &resources);
    stream.request(ack(&addresses)).expect("taken");
    resources.apply(&[delta(ADDRESS_TYPE, &["a"], &[]), delta(AUTHORIZATION_TYPE, &["n/p"], &[])]);
    assert!(!stream.is_due(&resources), "the policies' answer is missing");
    stream.request(ack(&policies)).expect("taken");
    assert_eq!(names(&next(&mut stream, &resources)), ["n/p"]);
    // Sent; the client applies them in the order of the stream.
    assert_eq!(names(&next(&mut stream, &resources)), ["a"]);
}

#[test]
fn a_client_that_is_too_far_behind_must_come_again() {
    let resources = Resources::new();
    let mut stream = Stream::new(&Node::default());
    resources.apply(&[delta(ADDRESS_TYPE, &["a"], &[])]);
    stream.request(ask(ADDRESS_TYPE, &[], &[])).expect("taken");
    let first = next(&mut stream, &resources);
    stream.request(ack(&first)).expect("taken");
    let many: Vec<_> = (0..=MAX_REMEMBERED_CHANGES).map(|index| index.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    resources.apply(&[delta("other", &["x"], &[]), delta(ADDRESS_TYPE, &many[..10], &[])]);
    assert_eq!(next(&mut stream, &resources).resources.len(), 10);
    let last = DeltaDiscoveryRequest { response_nonce: stream.nonces.to_string(), ..ask(ADDRESS_TYPE, &[], &[]) };
    stream.request(last).expect("taken");
    resources.apply(&[delta(ADDRESS_TYPE, &many[10..], &[])]);
    resources.apply(&[delta(ADDRESS_TYPE, &[], &many[..100])]);
    let status = stream.next_response(&resources).expect_err("too far behind");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("transport is closing"));
}

#[test]
fn what_a_client_may_name_is_bounded() {
    let mut stream = Stream::new(&Node::default());
    for index in 0..MAX_TYPES_PER_STREAM {
        stream.request(ask(&format!("type-{index}"), &[], &[])).expect("taken");
    }
    assert!(stream.request(ask("one more", &[], &[])).is_err());
    assert!(stream.request(ask("", &[], &[])).is_err());
    let long = "n".repeat(MAX_NAME_BYTES + 1);
    assert!(stream.request(ask("type-0", &[&long], &[])).is_err());
    let mut stream = Stream::new(&Node::default());
    stream.request(ask(ADDRESS_TYPE, &["*"], &["*"])).expect("taken");
    let many: Vec<_> = (0..=MAX_RESOURCES).map(|index| index.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(stream.request(ask(ADDRESS_TYPE, &many, &[])).is_err());
}
