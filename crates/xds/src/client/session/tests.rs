use super::*;
use crate::{ADDRESS_TYPE, AUTHORIZATION_TYPE, workload::Any};

fn session(on_demand: bool) -> Session {
    let watches = [(ADDRESS_TYPE.to_owned(), on_demand), (AUTHORIZATION_TYPE.to_owned(), false)];
    Session::new(Node { id: "ztunnel~1.1.1.1~z.n~n.svc.cluster.local".into(), ..Node::default() }, watches)
}

fn resource(name: &str, version: &str) -> discovery::Resource {
    let content = Any { type_url: ADDRESS_TYPE.into(), value: vec![1] };
    discovery::Resource { name: name.into(), version: version.into(), resource: Some(content), aliases: Vec::new() }
}

fn response(resources: Vec<discovery::Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        nonce: "n1".into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn accept(session: &mut Session, response: DeltaDiscoveryResponse) -> Outcome {
    let received = session.read(response);
    session.applied(received, Ok(()))
}

fn reject(session: &mut Session, response: DeltaDiscoveryResponse, name: &str) -> Outcome {
    let received = session.read(response);
    session.applied(received, Err(Nack { rejected: vec![(name.into(), "unreadable".into())] }))
}

fn held(session: &Session) -> Vec<(String, String)> {
    let first = session.open().into_iter().find(|request| request.type_url == ADDRESS_TYPE);
    first.expect("a request of each type").initial_resource_versions.into_iter().collect()
}

#[test]
fn a_stream_opens_with_one_wildcard_request_of_each_type() {
    let requests = session(false).open();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(request.node.is_some() && request.resource_names_subscribe.is_empty(), "{request:?}");
        assert!(request.initial_resource_versions.is_empty() && request.response_nonce.is_empty());
    }
}

#[test]
fn who_wants_certain_names_asks_for_them_in_every_stream() {
    let names = || [(ADDRESS_TYPE, BTreeSet::from(["a".to_owned(), "b".to_owned()]))];
    let mut session = session(false).naming(names());
    let open = |session: &Session| {
        session.open().into_iter().find(|request| request.type_url == ADDRESS_TYPE).expect("a request of each type")
    };
    let first = open(&session);
    assert_eq!(first.resource_names_subscribe, ["a", "b"]);
    assert!(first.initial_resource_versions.is_empty() && first.resource_names_unsubscribe.is_empty());
    // One is there, the other isn't yet: both stay asked for.
    accept(&mut session, response(vec![resource("a", "1")], &["b"]));
    let next = open(&session);
    assert_eq!(next.resource_names_subscribe, ["a", "b"]);
    assert_eq!(held(&session), [("a".to_owned(), "1".to_owned())]);
    assert_eq!(next.initial_resource_versions.len(), 1);
    let other = session.open().into_iter().find(|request| request.type_url == AUTHORIZATION_TYPE);
    assert!(other.expect("a request of each type").resource_names_subscribe.is_empty());
}

#[test]
fn an_acknowledgement_names_type_and_nonce_only() {
    let mut session = session(false);
    let Outcome { answer, .. } = accept(&mut session, response(vec![resource("a", "1")], &[]));
    let expected = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        response_nonce: "n1".into(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(answer, expected);
}

#[test]
fn what_was_accepted_is_told_to_the_next_stream_and_what_was_removed_is_not() {
    let mut session = session(false);
    accept(&mut session, response(vec![resource("a", "1"), resource("b", "1")], &[]));
    accept(&mut session, response(vec![resource("b", "2")], &["a", "never-seen"]));
    assert_eq!(held(&session), [("b".to_owned(), "2".to_owned())]);
}

#[test]
fn a_refused_resource_is_named_with_its_reason_and_told_without_version() {
    let mut session = session(false);
    accept(&mut session, response(vec![resource("a", "1")], &[]));
    let outcome = reject(&mut session, response(vec![resource("a", "2"), resource("b", "1")], &[]), "a");
    assert_eq!(outcome.answer.error_detail, Some(Status { code: 0, message: "a: unreadable".into() }));
    assert_eq!(outcome.answer.response_nonce, "n1");
    // Without a version: the server sends it again, and says so if it is gone by then.
    assert_eq!(held(&session), [("a".to_owned(), String::new()), ("b".to_owned(), "1".to_owned())]);
}

#[test]
fn content_that_is_not_what_it_says_is_refused_and_still_handed_on_to_be_closed() {
    let no_content = discovery::Resource { resource: None, ..resource("a", "1") };
    let foreign = Any { type_url: AUTHORIZATION_TYPE.into(), value: vec![1] };
    let foreign = discovery::Resource { resource: Some(foreign), ..resource("b", "1") };
    let long_version = resource("c", &"v".repeat(MAX_NAME_BYTES + 1));
    for (wrong, name) in [(no_content, "a"), (foreign, "b"), (long_version, "c")] {
        let mut session = session(false);
        let received = session.read(response(vec![wrong], &[]));
        assert_eq!(received.delta.resources[0].name, name);
        assert_eq!(received.delta.resources[0].value, UNREADABLE);
        assert!(<crate::workload::Address as prost::Message>::decode(UNREADABLE).is_err());
        let outcome = session.applied(received, Ok(()));
        assert!(outcome.answer.error_detail.expect("refused").message.starts_with(&format!("{name}: ")));
    }
}

#[test]
fn resources_without_a_usable_name_are_refused_alone() {
    for name in ["", &"n".repeat(MAX_NAME_BYTES + 1)] {
        let mut session = session(false);
        let received = session.read(response(vec![resource(name, "1"), resource("good", "1")], &[]));
        assert_eq!(received.delta.resources.len(), 1);
        assert!(session.applied(received, Ok(())).answer.error_detail.is_some());
        assert_eq!(held(&session), [("good".to_owned(), "1".to_owned())]);
    }
}

#[test]
fn what_goes_past_the_bound_is_refused_by_name_and_what_is_held_still_changes() {
    let mut session = Session { max_resources: 2, ..session(false) };
    accept(&mut session, response(vec![resource("a", "1")], &[]));
    let batch = vec![resource("b", "1"), resource("c", "1"), resource("a", "2")];
    let received = session.read(response(batch, &[]));
    assert!(received.delta.resources.iter().any(|resource| resource.name == "c"), "handed on, to be closed");
    let outcome = session.applied(received, Ok(()));
    assert_eq!(outcome.refused, [("c".to_owned(), "more than 2 resources of its type".to_owned())]);
    let names: Vec<_> = held(&session).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"], "no room is taken by what is refused");
}

#[test]
fn a_type_that_was_not_asked_for_is_refused_and_not_applied() {
    let mut session = session(false);
    let foreign = DeltaDiscoveryResponse { type_url: "other".into(), ..response(vec![resource("a", "1")], &["b"]) };
    let received = session.read(foreign);
    assert!(received.delta.resources.is_empty() && received.delta.removed.is_empty());
    let outcome = session.applied(received, Ok(()));
    assert_eq!(outcome.answer.type_url, "other");
    assert_eq!(outcome.answer.error_detail.expect("refused").message, "*: type `other` wasn't asked for");
}

#[test]
fn synced_means_one_whole_response_of_every_type_that_is_watched_as_a_whole() {
    let authorization = || DeltaDiscoveryResponse { type_url: AUTHORIZATION_TYPE.into(), ..response(Vec::new(), &[]) };
    let mut session = session(false);
    assert!(!session.is_synced());
    // An empty response is one, too.
    accept(&mut session, authorization());
    assert!(!session.is_synced());
    reject(&mut session, response(vec![resource("a", "1")], &[]), "a");
    assert!(!session.is_synced(), "a refused first response isn't a sync");
    accept(&mut session, response(vec![resource("a", "2")], &[]));
    assert!(session.is_synced());

    let mut session = self::session(true);
    accept(&mut session, authorization());
    assert!(session.is_synced(), "what comes on demand isn't waited for");
}

#[test]
fn on_demand_starts_with_nothing_and_asks_by_name() {
    let mut session = session(true);
    let address =
        |session: &Session| session.open().into_iter().filter(|r| r.type_url == ADDRESS_TYPE).collect::<Vec<_>>();
    let opened = address(&session);
    assert_eq!(opened.len(), 1);
    assert_eq!(
        (&opened[0].resource_names_subscribe[..], &opened[0].resource_names_unsubscribe[..]),
        (&["*".to_owned()][..], &["*".to_owned()][..])
    );

    let [request] = asked(&mut session, "/10.0.0.1", false).try_into().expect("one request");
    assert_eq!(request.resource_names_subscribe, ["/10.0.0.1"]);
    assert!(request.node.is_none() && request.response_nonce.is_empty());
    // The next stream asks for it again.
    assert_eq!(address(&session)[1].resource_names_subscribe, ["/10.0.0.1"]);

    let answer = discovery::Resource { aliases: vec!["/10.0.0.1".into()], ..resource("c//Pod/n/p", "1") };
    let outcome = accept(&mut session, response(vec![answer], &[]));
    assert_eq!((outcome.answered, outcome.unsubscribe), (vec![("/10.0.0.1".to_owned(), Ok(()))], None));
    assert_eq!(session.demand(ADDRESS_TYPE, "/10.0.0.1", false), Demand::Known);
    assert_eq!(session.demand(ADDRESS_TYPE, "c//Pod/n/p", false), Demand::Known);

    // The pod goes: so does what is known of its address, and the server need not keep it in mind.
    let outcome = accept(&mut session, response(Vec::new(), &["c//Pod/n/p"]));
    assert_eq!(outcome.answered, [("/10.0.0.1".to_owned(), Err(DemandError::Absent))]);
    assert_eq!(outcome.unsubscribe.expect("a request").resource_names_unsubscribe, ["/10.0.0.1"]);
    assert!(outcome.answer.resource_names_unsubscribe.is_empty(), "servers expect none in an acknowledgement");
    assert_eq!(address(&session).len(), 1, "the next stream doesn't ask");
    assert_eq!(asked(&mut session, "/10.0.0.1", false).len(), 1, "absence isn't remembered");
}

#[test]
fn what_is_subscribed_to_is_asked_for_anew_by_a_new_subscription() {
    let mut session = session(true);
    asked(&mut session, "/10.0.0.1", false);
    let answer = discovery::Resource { aliases: vec!["/10.0.0.1".into()], ..resource("c//Pod/n/p", "1") };
    accept(&mut session, response(vec![answer, resource("n/s", "1")], &[]));
    // By a name asked for, and by one that came with it.
    for name in ["/10.0.0.1", "n/s"] {
        let [unsubscribe, subscribe] = asked(&mut session, name, true).try_into().expect("two requests");
        assert_eq!(
            (&unsubscribe.resource_names_unsubscribe[..], unsubscribe.resource_names_subscribe.len()),
            (&[name.to_owned()][..], 0)
        );
        assert_eq!(
            (&subscribe.resource_names_subscribe[..], subscribe.resource_names_unsubscribe.len()),
            (&[name.to_owned()][..], 0)
        );
    }
    let outcome = accept(&mut session, response(vec![resource("n/s", "2")], &[]));
    assert_eq!(outcome.answered, [("n/s".to_owned(), Ok(()))]);
}

#[test]
fn what_cannot_be_read_is_not_taken_for_absent() {
    let mut session = session(true);
    asked(&mut session, "/10.96.0.1", false);
    let answer = discovery::Resource { aliases: vec!["/10.96.0.1".into()], ..resource("n/s", "1") };
    let outcome = reject(&mut session, response(vec![answer], &[]), "n/s");
    assert_eq!(outcome.answered, [("/10.96.0.1".to_owned(), Err(DemandError::Unreadable))]);
    assert_eq!(outcome.unsubscribe, None, "it may become readable");
}

#[test]
fn on_demand_has_its_refusals() {
    let mut session = Session { max_demanded: 3, ..session(true) };
    assert_eq!(session.demand(AUTHORIZATION_TYPE, "n/p", false), Demand::WatchedWhole);
    assert_eq!(session.demand("other", "n/p", false), Demand::WatchedWhole);
    for name in ["n/a", "/10.0.0.2", "/10.0.0.3"] {
        asked(&mut session, name, false);
    }
    assert_eq!(session.demand(ADDRESS_TYPE, "/10.0.0.4", false), Demand::Full);
    asked(&mut session, "/10.0.0.2", false);
    // What may be told of by its name, and what somebody waits for, stays.
    let request = session.forget_unanswered(ADDRESS_TYPE, |name| name == "/10.0.0.2").expect("a request");
    assert_eq!(request.resource_names_unsubscribe, ["/10.0.0.3"]);
    assert_eq!(session.forget_unanswered(ADDRESS_TYPE, |name| name == "/10.0.0.2"), None);
    asked(&mut session, "/10.0.0.4", false);
    assert_eq!(session.demand(ADDRESS_TYPE, "/10.0.0.5", false), Demand::Full);
    // An address that nobody has takes no room.
    accept(&mut session, response(Vec::new(), &["/10.0.0.4"]));
    asked(&mut session, "/10.0.0.5", false);
}

#[test]
fn a_name_that_may_still_come_stays_subscribed_to() {
    let mut session = session(true);
    asked(&mut session, "n/s", false);
    let outcome = accept(&mut session, response(Vec::new(), &["n/s"]));
    assert_eq!((outcome.answered, outcome.unsubscribe), (vec![("n/s".to_owned(), Err(DemandError::Absent))], None));
    assert_eq!(asked(&mut session, "n/s", false).len(), 2, "asked again it is subscribed to anew");
    accept(&mut session, response(vec![resource("n/s", "1")], &[]));
    assert_eq!(session.demand(ADDRESS_TYPE, "n/s", false), Demand::Known);
}

/// The requests by which a name is asked for.
fn asked(session: &mut Session, name: &str, again: bool) -> Vec<DeltaDiscoveryRequest> {
    match session.demand(ADDRESS_TYPE, name, again) {
        Demand::Ask(requests) => requests,
        other => panic!("`{name}` must be asked for: {other:?}"),
    }
}

#[test]
fn a_long_refusal_is_cut_and_says_how_much_is_missing() {
    let refused: Vec<_> = (0..10_000).map(|index| (format!("resource-{index}"), "unreadable".to_owned())).collect();
    let message = explain(&refused);
    assert!(message.len() < MAX_NACK_BYTES + 100);
    let named = message.matches("unreadable").count();
    assert!(message.ends_with(&format!("; and {} more", 10_000 - named)));
}
