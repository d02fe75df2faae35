//! Only what is asked for.

use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    client::{DemandError, Options, Watch},
};

use crate::{
    scripted::{Scripted, response},
    support::{Control, Pki, Proxy, addresses, options, policies, service, workload},
};

fn on_demand(mut options: Options) -> Options {
    options.watches = vec![Watch::all(AUTHORIZATION_TYPE), Watch::on_demand(ADDRESS_TYPE)];
    // No node: the server would send its workloads unasked.
    options.node.node = String::new();
    options
}

fn mesh() -> [ambit_xds::DeltaResponse; 2] {
    let svc = "n/s.n.svc.cluster.local";
    let all = vec![
        service("s.n.svc.cluster.local", 1),
        workload("a", 1, "node-1", Some(svc)),
        workload("b", 2, "node-2", Some(svc)),
        workload("c", 3, "node-2", None),
    ];
    [addresses(all, &[]), policies(&["n/p"])]
}

#[tokio::test]
async fn names_bring_what_they_lead_to() {
    for (name, brings) in [
        ("/10.0.0.3", &["c"][..]),
        ("c", &["c"]),
        ("n/s.n.svc.cluster.local", &["a", "b", "n/s.n.svc.cluster.local"]),
        ("/10.96.0.1", &["a", "b", "n/s.n.svc.cluster.local"]),
    ] {
        let pki = Pki::new();
        let control = Control::start(&pki).await;
        control.resources.apply(&mesh());
        let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
        proxy.synced().await;
        assert!(proxy.told.borrow().names(ADDRESS_TYPE).is_empty(), "nothing unasked");
        assert_eq!(proxy.told.borrow().names(AUTHORIZATION_TYPE), ["n/p"], "policies all the same");
        assert_eq!(proxy.handle.demand(ADDRESS_TYPE, name).await, Ok(()), "{name}");
        assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE), brings, "{name}");
        assert_eq!(proxy.handle.demand(ADDRESS_TYPE, name).await, Ok(()), "{name}, again");
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_absent_and_asked_for_again() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control.resources.apply(&mesh());
    let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.9").await, Err(DemandError::Absent));
    control.resources.apply(&[addresses(vec![workload("d", 9, "", None)], &[])]);
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.9").await, Ok(()));
    assert_eq!(proxy.handle.demand(AUTHORIZATION_TYPE, "n/p").await, Err(DemandError::NotOnDemand));
}

#[tokio::test]
async fn what_was_asked_for_is_kept_up_to_date_and_nothing_else_is() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control.resources.apply(&mesh());
    let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
    let svc = "n/s.n.svc.cluster.local";
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, svc).await, Ok(()));
    // A new endpoint of the service, a change to a stranger, and an endpoint gone.
    control
        .resources
        .apply(&[addresses(vec![workload("e", 5, "node-3", Some(svc)), workload("c", 7, "", None)], &["a"])]);
    let told = proxy.until("changed", |told| told.names(ADDRESS_TYPE) == ["b", "e", svc]).await;
    assert!(told.address("c").is_none());
}

#[tokio::test]
async fn the_workloads_of_the_own_node_come_unasked_once_they_change() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    let mut options = on_demand(options(control.endpoint(&pki)));
    options.node.node = "node-1".into();
    let proxy = Proxy::start(options);
    proxy.synced().await;
    control.resources.apply(&mesh());
    proxy.until("told", |told| told.names(ADDRESS_TYPE) == ["a"]).await;
}

#[tokio::test]
async fn a_new_stream_asks_for_the_same_names() {
    let pki = Pki::new();
    let mut control = Control::start(&pki).await;
    control.resources.apply(&mesh());
    let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.3").await, Ok(()));
    control.stop().await;
    proxy.until_state("cut off", |state| !state.connected).await;
    control.resume().await;
    proxy.until_state("connected", |state| state.connected).await;
    control.resources.apply(&[addresses(vec![workload("c", 3, "node-9", None)], &[])]);
    let moved = workload("c", 3, "node-9", None).1;
    proxy.until("told", |told| told.address("c").as_ref() == Some(&moved)).await;
}

#[tokio::test]
async fn the_requests_are_those_that_istio_expects() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let proxy = Proxy::start(on_demand(options(server.endpoint(&pki))));
    let mut stream = server.stream().await;
    let [policy, address] = stream.requests().await;
    assert!(policy.resource_names_subscribe.is_empty() && policy.resource_names_unsubscribe.is_empty());
    assert_eq!(
        (address.resource_names_subscribe, address.resource_names_unsubscribe),
        (vec!["*".to_owned()], vec!["*".to_owned()])
    );
    let handle = proxy.handle.clone();
    let asked = tokio::spawn(async move { handle.demand(ADDRESS_TYPE, "net/10.0.0.1").await });
    let request = stream.request().await;
    assert_eq!(
        (request.type_url.as_str(), &request.resource_names_subscribe[..]),
        (ADDRESS_TYPE, &["net/10.0.0.1".to_owned()][..])
    );
    assert!(request.node.is_none() && request.response_nonce.is_empty());
    stream.send(response(ADDRESS_TYPE, "1", &[], &["net/10.0.0.1"]));
    assert_eq!(asked.await.expect("no panic"), Err(DemandError::Absent));
    // First the acknowledgement, then, apart from it, the end of a subscription that leads nowhere.
    let acknowledgement = stream.request().await;
    assert_eq!((acknowledgement.response_nonce.as_str(), acknowledgement.resource_names_unsubscribe.len()), ("1", 0));
    let unsubscribe = stream.request().await;
    assert_eq!(
        (unsubscribe.response_nonce.as_str(), &unsubscribe.resource_names_unsubscribe[..]),
        ("", &["net/10.0.0.1".to_owned()][..])
    );
}

#[tokio::test]
async fn without_an_answer_the_caller_does_not_wait_for_ever() {
    let pki = Pki::new();
    let mut server = Scripted::start(&pki).await;
    let proxy = Proxy::start(on_demand(options(server.endpoint(&pki))));
    let _silent = server.stream().await;
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.1").await, Err(DemandError::Timeout));
    let handle = proxy.handle.clone();
    proxy.stop().await;
    assert_eq!(handle.demand(ADDRESS_TYPE, "/10.0.0.1").await, Err(DemandError::Stopped));
}

#[tokio::test]
async fn an_address_that_changed_hands_is_asked_for_anew() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control.resources.apply(&mesh());
    let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.3").await, Ok(()));
    // The pod gets another address, and another pod its address.
    control.resources.apply(&[addresses(vec![workload("c", 7, "", None)], &[])]);
    let moved = workload("c", 7, "", None).1;
    proxy.until("moved", |told| told.address("c").as_ref() == Some(&moved)).await;
    control.resources.apply(&[addresses(vec![workload("d", 3, "", None)], &[])]);
    assert_eq!(proxy.handle.refresh(ADDRESS_TYPE, "/10.0.0.3").await, Ok(()));
    assert!(proxy.told.borrow().address("d").is_some());
}

#[tokio::test]
async fn what_is_removed_is_gone_and_may_come_back() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control.resources.apply(&mesh());
    let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.3").await, Ok(()));
    control.resources.apply(&[addresses(Vec::new(), &["c"])]);
    proxy.until("removed", |told| told.address("c").is_none()).await;
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.3").await, Err(DemandError::Absent));
    control.resources.apply(&[addresses(vec![workload("c", 3, "", None)], &[])]);
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.3").await, Ok(()));
}

#[tokio::test]
async fn what_is_refused_is_not_said_to_be_absent() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    control.resources.apply(&mesh());
    let proxy = Proxy::start(on_demand(options(control.endpoint(&pki))));
    proxy.refuse.lock().expect("no panic").insert("c".to_owned());
    assert_eq!(proxy.handle.demand(ADDRESS_TYPE, "/10.0.0.3").await, Err(DemandError::Unreadable));
}
