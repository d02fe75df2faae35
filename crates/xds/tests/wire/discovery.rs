//! Everything of every type, across refusals, restarts and servers that misbehave.

use ambit_xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, client::Termination, server::Resources};
use tonic::Status;

use crate::{
    scripted::{Scripted, response},
    support::{Control, Pki, Proxy, addresses, options, policies, service, workload},
};

#[tokio::test]
async fn a_proxy_learns_everything_and_then_what_changes() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control
        .resources
        .apply(&[addresses(vec![workload("a", 1, "node-1", None), service("s", 1)], &[]), policies(&["n/p"])]);
    let proxy = Proxy::start(options(control.endpoint(&pki)));
    proxy.synced().await;
    let told = proxy.told.borrow().clone();
    assert_eq!(told.names(ADDRESS_TYPE), ["a", "n/s"]);
    assert_eq!(told.names(AUTHORIZATION_TYPE), ["n/p"]);
    assert_eq!(told.pushes[0][0].type_url, AUTHORIZATION_TYPE, "policies come before the workloads that name them");
    assert!(proxy.handle.state().connected);

    control.resources.apply(&[addresses(vec![workload("a", 2, "node-1", None), workload("b", 3, "", None)], &["n/s"])]);
    let told = proxy.until("changed", |told| told.names(ADDRESS_TYPE) == ["a", "b"]).await;
    assert_eq!(told.address("a"), Some(workload("a", 2, "node-1", None).1));
    assert_eq!(told.pushes.len(), 3, "one change is one push");
    for (_, stats) in proxy.handle.stats().types() {
        assert!(stats.messages() > 0 && stats.bytes() > 0 && stats.refused() == 0);
    }
}

#[tokio::test]
async fn an_empty_mesh_is_a_sync_too() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    let proxy = Proxy::start(options(control.endpoint(&pki)));
    proxy.synced().await;
    assert!(proxy.told.borrow().resources.is_empty());
}

#[tokio::test]
async fn the_server_learns_who_asks() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    let mut options = options(control.endpoint(&pki));
    options.endpoint.headers = vec![("X-Extra".into(), "1".into())];
    let proxy = Proxy::start(options);
    proxy.synced().await;
    let seen = control.gate.seen();
    assert_eq!(seen.len(), 1, "asked once for a stream");
    assert_eq!(seen[0].token.as_deref(), Some("first-token"));
    assert_eq!(seen[0].header.as_deref(), Some("1"));
    let node = seen[0].node.clone().expect("a node");
    assert_eq!(node.id, "ztunnel~1.1.1.1~ztunnel-1.istio-system~istio-system.svc.cluster.local");
    assert_eq!(node.metadata.expect("metadata").text("NODE_NAME"), Some("node-1"));
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_rest_is_taken() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let proxy = Proxy::start(options(server.endpoint(&pki)));
    proxy.refuse.lock().expect("no panic").insert("bad".into());
    let mut stream = server.stream().await;
    let [policy, address] = stream.requests().await;
    assert_eq!((policy.type_url.as_str(), address.type_url.as_str()), (AUTHORIZATION_TYPE, ADDRESS_TYPE));
    stream.send(response(AUTHORIZATION_TYPE, "1", &[], &[]));
    assert_eq!(stream.request().await.error_detail, None);
    stream.send(response(ADDRESS_TYPE, "2", &[("bad", "1"), ("good", "1")], &[]));
    let answer = stream.request().await;
    assert_eq!((answer.response_nonce.as_str(), answer.type_url.as_str()), ("2", ADDRESS_TYPE));
    assert_eq!(answer.error_detail.expect("refused").message, "bad: refused by the test");
    assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE), ["good"]);
    proxy.until_state("connected", |state| state.connected).await;
    assert!(!proxy.handle.state().synced, "a first push that was refused isn't a sync");

    // The same server says it right.
    proxy.refuse.lock().expect("no panic").clear();
    stream.send(response(ADDRESS_TYPE, "3", &[("bad", "2")], &[]));
    assert_eq!(stream.request().await.error_detail, None);
    proxy.synced().await;

    // A later bad version: the one before it stays with the proxy, and the next stream is told that it isn't held.
    proxy.refuse.lock().expect("no panic").insert("good".into());
    stream.send(response(ADDRESS_TYPE, "4", &[("good", "2")], &[]));
    assert!(stream.request().await.error_detail.is_some());
    assert_eq!(proxy.told.borrow().resources[&(ADDRESS_TYPE.into(), "good".into())], b"good1");
    stream.fail(Status::unavailable("transport is closing"));
    let [_, address] = server.stream().await.requests().await;
    let held: Vec<_> = address.initial_resource_versions.into_iter().collect();
    assert_eq!(held, [("bad".to_owned(), "2".to_owned()), ("good".to_owned(), String::new())]);
}

#[tokio::test]
async fn content_of_another_type_is_refused_without_harm() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let proxy = Proxy::start(options(server.endpoint(&pki)));
    let mut stream = server.stream().await;
    stream.requests::<2>().await;
    let mut wrong = response(ADDRESS_TYPE, "1", &[("a", "1"), ("b", "1")], &[]);
    wrong.resources[0].resource.as_mut().expect("content").type_url = "type.googleapis.com/other".into();
    stream.send(wrong);
    let message = stream.request().await.error_detail.expect("refused").message;
    assert_eq!(message, "a: its content is a `type.googleapis.com/other`");
    assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE), ["b"]);
    stream.send(response("type.googleapis.com/unknown", "2", &[("x", "1")], &[]));
    assert!(stream.request().await.error_detail.expect("refused").message.contains("wasn't asked for"));
    assert_eq!(proxy.told.borrow().pushes.len(), 1, "nothing of it reached the proxy");
}

#[tokio::test]
async fn after_a_restart_only_what_changed_is_sent() {
    let pki = Pki::new();
    let mut control = Control::start(&pki).await;
    let before = vec![workload("a", 1, "", None), workload("b", 2, "", None), workload("c", 3, "", None)];
    control.resources.apply(&[addresses(before, &[]), policies(&["n/p"])]);
    let proxy = Proxy::start(options(control.endpoint(&pki)));
    proxy.synced().await;
    let pushes = proxy.told.borrow().pushes.len();

    control.stop().await;
    proxy.until_state("cut off", |state| !state.connected && state.failure.is_some()).await;
    assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE), ["a", "b", "c"], "what is known stays in force");

    // Another replica, with no memory of this client: `a` changed, `b` is gone, `c` is as it was.
    let resources = Resources::new();
    resources
        .apply(&[addresses(vec![workload("a", 9, "", None), workload("c", 3, "", None)], &[]), policies(&["n/p"])]);
    control.replace_resources(resources);
    control.resume().await;
    let told = proxy.until("caught up", |told| told.names(ADDRESS_TYPE) == ["a", "c"]).await;
    let news: Vec<_> = told.pushes[pushes..].iter().flatten().collect();
    let sent: Vec<_> = news.iter().flat_map(|delta| &delta.resources).map(|resource| resource.name.as_str()).collect();
    let gone: Vec<_> = news.iter().flat_map(|delta| &delta.removed).map(String::as_str).collect();
    assert_eq!((&sent[..], &gone[..]), (&["a"][..], &["b"][..]));
    proxy.until_state("connected", |state| state.connected && state.failure.is_none()).await;
}

#[tokio::test]
async fn a_slow_server_is_waited_for_and_not_taken_for_synced() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let proxy = Proxy::start(options(server.endpoint(&pki)));
    let mut stream = server.stream().await;
    stream.requests::<2>().await;
    // Not a word yet.
    assert_eq!(proxy.handle.state(), ambit_xds::client::State::default());
    stream.send(response(ADDRESS_TYPE, "1", &[("a", "1")], &[]));
    stream.request().await;
    assert!(!proxy.handle.state().synced, "one of two types");
    stream.send(response(AUTHORIZATION_TYPE, "2", &[], &[]));
    proxy.synced().await;
}

#[tokio::test]
async fn a_message_past_the_bound_ends_the_stream_and_changes_nothing() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let mut options = options(server.endpoint(&pki));
    options.max_response_bytes = 2000;
    let proxy = Proxy::start(options);
    let mut stream = server.stream().await;
    stream.requests::<2>().await;
    stream.send(response(ADDRESS_TYPE, "1", &[("a", "1")], &[]));
    stream.request().await;
    stream.send(response(ADDRESS_TYPE, "2", &[("b", &"x".repeat(2000))], &["a"]));
    stream.ended().await;
    assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE), ["a"]);
    let mut stream = server.stream().await;
    let [_, address] = stream.requests().await;
    assert_eq!(address.initial_resource_versions.into_iter().collect::<Vec<_>>(), [("a".to_owned(), "1".to_owned())]);
    assert_eq!(proxy.handle.stats().terminations(Termination::Error), 1);
    assert!(proxy.handle.state().failure.expect("a reason").contains("OutOfRange"));
    // And a message below it goes through.
    stream.send(response(ADDRESS_TYPE, "1", &[("b", &"x".repeat(800))], &[]));
    proxy.until("b is there", |told| told.names(ADDRESS_TYPE) == ["a", "b"]).await;
}

#[tokio::test]
async fn a_large_message_below_the_bound_goes_through() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    // More than gRPC's usual 4 MiB, and than the windows.
    let many = (0..100_u8).map(|index| {
        let (name, mut address) = workload(&format!("w{index}"), index, "", None);
        if let Some(ambit_xds::workload::address::Type::Workload(workload)) = &mut address.r#type {
            workload.canonical_name = "x".repeat(200_000);
        }
        (name, address)
    });
    control.resources.apply(&[addresses(many.collect(), &[])]);
    let proxy = Proxy::start(options(control.endpoint(&pki)));
    proxy.synced().await;
    assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE).len(), 100);
}

#[tokio::test]
async fn a_stream_that_fails_is_opened_again_whatever_the_reason() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let proxy = Proxy::start(options(server.endpoint(&pki)));
    for (status, how) in [
        (Status::unavailable("no"), Termination::Error),
        (Status::unauthenticated("no"), Termination::Error),
        (Status::internal("no"), Termination::Error),
        (Status::unavailable("transport is closing"), Termination::Reconnect),
        (Status::unknown("no"), Termination::Reconnect),
        (Status::cancelled("no"), Termination::Reconnect),
    ] {
        let before = proxy.handle.stats().terminations(how);
        let mut stream = server.stream().await;
        stream.requests::<2>().await;
        stream.fail(status);
        stream.ended().await;
        proxy.until_state("told", |state| state.failure.is_some()).await;
        let mut next = server.stream().await;
        next.requests::<2>().await;
        assert_eq!(proxy.handle.stats().terminations(how), before + 1, "{how:?}");
        // One more round for the stream that was just opened.
        next.fail(Status::unavailable("transport is closing"));
        next.ended().await;
    }
}

#[tokio::test]
async fn changes_wait_folded_for_a_proxy_that_is_slow() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control.resources.apply(&[addresses(vec![workload("a", 0, "", None)], &[])]);
    let proxy = Proxy::start(options(control.endpoint(&pki)));
    proxy.synced().await;
    proxy.open.send_replace(false);
    let before = proxy.told.borrow().pushes.len();
    for last in 1..=200 {
        control.resources.apply(&[addresses(vec![workload("a", last, "", None)], &[])]);
    }
    let newest = workload("a", 200, "", None).1;
    proxy.open.send_replace(true);
    let told = proxy.until("caught up", |told| told.address("a").as_ref() == Some(&newest)).await;
    assert!(told.pushes.len() - before <= 3, "{} pushes", told.pushes.len() - before);
}

#[tokio::test]
async fn a_proxy_that_went_away_is_forgotten_and_stopping_ends_every_stream() {
    let pki = Pki::new();
    let mut control = Control::start(&pki).await;
    let (left, stays) = (Proxy::start(options(control.endpoint(&pki))), Proxy::start(options(control.endpoint(&pki))));
    left.synced().await;
    stays.synced().await;
    left.stop().await;
    control.resources.apply(&[addresses(vec![workload("a", 1, "", None)], &[])]);
    stays.until("told", |told| !told.resources.is_empty()).await;
    control.stop().await;
    stays.until_state("cut off", |state| !state.connected).await;
    assert_eq!(stays.handle.stats().terminations(Termination::Error), 0, "a planned end");
}
