//! A proxy that starts with nothing and asks for what its connections need, of a real control plane over gRPC.

use std::{net::SocketAddr, sync::Arc};

use ambit_hbone::ConnectError;
use ambit_identity::{BoxFuture, SpiffeId};
use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Endpoint, Resource, Roots, channel,
    client::{Client, Handle, NodeIdentity, Options, Watch},
    discovery::Node,
    server::{Authorize, Denied, Peer, Resources, Server},
    workload::{Address, GatewayAddress, NetworkAddress, Service, Workload, address, gateway_address::Destination},
};
use http::{HeaderMap, HeaderValue, StatusCode};
use prost::Message;
use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    fixture::{
        PATIENCE, World, application, at, converse, endpoint, guarded, id, ip, octets, pod, push, service, was_reset,
        waypoint,
    },
    inbound::connect,
};
use crate::{Config, OnDemand, limits::MAX_DEMANDS_PER_POD, on_demand::AskError};

/// A control plane, and a proxy that asks it.
struct Asked {
    world: World,
    resources: Arc<Resources>,
    handle: Handle,
    _server: Option<DropGuard>,
    _client: DropGuard,
}

/// Lets everybody have everything.
struct Everybody;

impl Authorize for Everybody {
    fn discovery<'a>(&'a self, _: &'a Peer, _: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn certificate<'a>(&'a self, _: &'a Peer, _: Option<&'a SpiffeId>) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        Box::pin(std::future::ready(Err(Denied::new("it signs nothing"))))
    }
}

impl Asked {
    /// With a control plane that answers, or one whose address nobody listens on.
    async fn new(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (resources, stop) = (Resources::new(), CancellationToken::new());
        let server = answers.then(|| {
            let server = Server::new(Arc::new(Everybody)).with_resources(Arc::clone(&resources));
            tokio::spawn(server.serve(listener, stop.clone()));
            stop.drop_guard()
        });
        let endpoint = Endpoint::new(format!("http://{address}").parse().expect("an address"), Roots::System);
        let watches = vec![Watch::all(AUTHORIZATION_TYPE), Watch::on_demand(ADDRESS_TYPE)];
        let options = Options { watches, ..Options::new(endpoint, NodeIdentity::default()) };
        let (sink, pushes) = channel::channel();
        let (client, handle) = Client::new(options, sink).expect("options that make sense");
        let world = World::with(Config { on_demand: Some(OnDemand::new(handle.clone())), ..Config::default() });
        tokio::spawn(Arc::clone(&world.store).run(pushes));
        let stop = CancellationToken::new();
        tokio::spawn(client.run(stop.clone()));
        if answers {
            handle.synced().await.expect("policies come unasked");
        }
        Self { world, resources, handle, _server: server, _client: stop.drop_guard() }
    }

    /// Has the control plane know these.
    fn tell(&self, workloads: &[&Workload], services: &[&Service]) {
        let workloads = workloads.iter().map(|w| (w.uid.clone(), address::Type::Workload((*w).clone())));
        let services =
            services.iter().map(|s| (format!("{}/{}", s.namespace, s.hostname), address::Type::Service((*s).clone())));
        let contents = workloads.chain(services);
        let resources =
            contents.map(|(name, content)| Resource::digested(name, Address { r#type: Some(content) }.encode_to_vec()));
        self.change(resources.collect(), &[]);
    }

    fn change(&self, resources: Vec<Resource>, removed: &[&str]) {
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        self.resources.apply(&[DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources, removed }]);
    }

    /// What the proxy knows.
    fn known(&self) -> Vec<String> {
        let view = self.world.store.load();
        let workloads = view.workloads().map(|workload| workload.name.to_string());
        let mut known: Vec<String> = workloads.chain(view.services().map(|service| service.name.to_string())).collect();
        known.sort();
        known
    }
}

#[tokio::test]
async fn a_connection_brings_what_it_needs_and_nothing_else() {
    let mut asked = Asked::new(true).await;
    let server = application(ip("127.77.61.3")).await;
    let client = pod("client", "127.77.61.2");
    let backend = endpoint(pod("backend", "127.77.61.3"), "server", 80, server.port());
    let stranger = endpoint(pod("stranger", "127.77.61.4"), "other", 80, 80);
    asked.tell(
        &[&client, &backend, &stranger],
        &[&service("server", &["10.96.61.1"], 80, None), &service("other", &["10.96.61.2"], 80, None)],
    );
    asked.world.serve(&client);
    asked.world.serve(&backend);
    assert!(asked.known().is_empty(), "nothing unasked");
    let mut stream = asked.world.enter(&client, at("10.96.61.1:80")).await;
    converse(&mut stream).await;
    assert_eq!(asked.known(), ["backend", "client", "server"], "no stranger");
    let record = asked.world.record().await;
    assert_eq!(record.verdict, Verdict::Allow, "{record:?}");
    // By the pod's address, which is known by now.
    let mut stream = asked.world.enter(&client, server).await;
    converse(&mut stream).await;
}

/// A reference by address.
fn by_address(network: &str, ip: &str) -> GatewayAddress {
    let address = NetworkAddress { network: network.to_owned(), address: octets(ip), length: None };
    GatewayAddress { destination: Some(Destination::Address(address)), hbone_mtls_port: 15008 }
}

#[tokio::test]
async fn whatever_a_way_depends_on_is_asked_for() {
    let vip = "10.96.62.1";
    let backend = || endpoint(pod("backend", "127.77.62.3"), "server", 80, 8080);
    let on_service = |waypoint| Service { waypoint: Some(waypoint), ..service("server", &[vip], 80, None) };
    let on_pod = |waypoint| Workload { waypoint: Some(waypoint), ..pod("backend", "127.77.62.3") };
    let named = || service("server", &[vip], 80, Some("wp")).waypoint.expect("by name");
    let front = || waypoint("wp", "127.77.62.4");
    let wp = || service("wp", &["10.96.62.2"], 15008, None);
    let far = |gateway| Workload { network: "far".to_owned(), network_gateway: Some(gateway), ..backend() };
    let believed = || Service {
        subject_alt_names: vec!["spiffe://cluster.local/ns/ns/sa/backend".to_owned()],
        ..service("server", &[vip], 80, None)
    };
    let east_west = || Workload { network: "far".to_owned(), ..pod("gateway", "127.77.62.5") };
    type Case = (&'static str, &'static str, Vec<Workload>, Vec<Service>, &'static [&'static str]);
    let cases: Vec<Case> = vec![
        ("a pod", "127.77.62.3", vec![backend()], vec![], &["backend", "client"]),
        (
            "a service",
            vip,
            vec![backend()],
            vec![service("server", &[vip], 80, None)],
            &["backend", "client", "server"],
        ),
        (
            "a service's waypoint by its name",
            vip,
            vec![backend(), front()],
            vec![on_service(named()), wp()],
            &["backend", "client", "server", "wp", "wp"],
        ),
        (
            "a service's waypoint by its pod's address",
            vip,
            vec![backend(), front()],
            vec![on_service(by_address("", "127.77.62.4"))],
            &["backend", "client", "server", "wp"],
        ),
        (
            "a service's waypoint by its virtual address",
            vip,
            vec![backend(), front()],
            vec![on_service(by_address("", "10.96.62.2")), wp()],
            &["backend", "client", "server", "wp", "wp"],
        ),
        (
            "a pod's waypoint",
            "127.77.62.3",
            vec![on_pod(named()), front()],
            vec![wp()],
            &["backend", "client", "wp", "wp"],
        ),
        (
            "the gateway of another network",
            vip,
            vec![far(by_address("far", "127.77.62.5")), east_west()],
            vec![believed()],
            &["backend", "client", "gateway", "server"],
        ),
    ];
    for (number, (what, destination, workloads, services, known)) in cases.into_iter().enumerate() {
        let mut asked = Asked::new(true).await;
        let client = pod("client", &format!("127.77.62.{}", 20 + number));
        asked.tell(&workloads.iter().chain([&client]).collect::<Vec<_>>(), &services.iter().collect::<Vec<_>>());
        asked.world.serve(&client);
        let mut stream = asked.world.enter(&client, SocketAddr::new(ip(destination), 80)).await;
        // Nobody is there: what counts is that the proxy knew where to look.
        was_reset(&mut stream).await;
        let reason = asked.world.record().await.reason.to_string();
        assert!(reason.contains("can't be reached"), "{what}: {reason}");
        assert_eq!(asked.known(), known, "{what}");
    }
}

#[tokio::test]
async fn what_nobody_has_is_asked_for_once_and_believed_for_a_while() {
    let mut asked = Asked::new(true).await;
    let client = pod("client", "127.77.63.2");
    asked.tell(&[&client], &[]);
    asked.world.serve(&client);
    for _ in 0..10 {
        let mut stream = asked.world.enter(&client, at("10.96.63.1:80")).await;
        was_reset(&mut stream).await;
        let reason = asked.world.record().await.reason.to_string();
        assert!(reason.starts_with("no workload or service of the mesh has address `10.96.63.1`"), "{reason}");
    }
    // At the start, for the client itself, and for the address once: again only on a machine that takes seconds for this.
    let messages: u64 =
        asked.handle.stats().types().filter(|(url, _)| *url == ADDRESS_TYPE).map(|(_, stats)| stats.messages()).sum();
    assert!(messages <= 6, "{messages} answers");
    // It is there now, and found once the answer has aged, however often it is asked for meanwhile.
    let server = application(ip("127.77.63.3")).await;
    let backend = endpoint(pod("backend", "127.77.63.3"), "server", 80, server.port());
    asked.tell(&[&backend], &[&service("server", &["10.96.63.1"], 80, None)]);
    asked.world.serve(&backend);
    reached(&asked, &client, "10.96.63.1:80").await;
}

#[tokio::test]
async fn what_is_removed_is_refused_and_found_again_when_it_comes_back() {
    let mut asked = Asked::new(true).await;
    let server = application(ip("127.77.64.3")).await;
    let client = pod("client", "127.77.64.2");
    let backend = endpoint(pod("backend", "127.77.64.3"), "server", 80, server.port());
    let front = service("server", &["10.96.64.1"], 80, None);
    asked.tell(&[&client, &backend], &[&front]);
    asked.world.serve(&client);
    asked.world.serve(&backend);
    converse(&mut asked.world.enter(&client, at("10.96.64.1:80")).await).await;
    asked.world.record().await;
    let mut changes = asked.world.store.changes();
    asked.change(Vec::new(), &["ns/server.ns.svc.cluster.local"]);
    let gone = async { changes.wait_for(|_| !asked.known().contains(&"server".to_owned())).await.map(drop) };
    timeout(PATIENCE, gone).await.expect("told in time").expect("a store");
    was_reset(&mut asked.world.enter(&client, at("10.96.64.1:80")).await).await;
    let reason = asked.world.record().await.reason.to_string();
    assert!(reason.starts_with("no workload or service"), "{reason}");
    asked.tell(&[], &[&front]);
    reached(&asked, &client, "10.96.64.1:80").await;
}

#[tokio::test]
async fn what_cannot_be_found_out_is_refused() {
    // The control plane isn't there.
    let mut asked = Asked::new(false).await;
    let client = pod("client", "127.77.65.2");
    push(&asked.world.store, &[&client], &[]);
    asked.world.serve(&client);
    was_reset_within(&mut asked.world.enter(&client, at("10.96.65.1:80")).await, 3 * PATIENCE).await;
    let reason = asked.world.record().await.reason.to_string();
    assert!(reason.contains("`/10.96.65.1` isn't known, and can't be asked for"), "{reason}");

    // What it says can't be read (a tunnel protocol that no node proxy speaks).
    let mut asked = Asked::new(true).await;
    let client = pod("client", "127.77.65.4");
    let legacy = Workload { tunnel_protocol: 2, ..pod("backend", "127.77.65.3") };
    asked.tell(&[&client, &legacy], &[]);
    asked.world.serve(&client);
    for _ in 0..2 {
        was_reset(&mut asked.world.enter(&client, at("127.77.65.3:80")).await).await;
        let reason = asked.world.record().await.reason.to_string();
        assert_eq!(reason, "what the control plane says of `/127.77.65.3` can't be read");
    }
}

#[tokio::test]
async fn a_pod_that_the_control_plane_does_not_know_yet_is_waited_for() {
    let asked = Asked::new(true).await;
    let server = application(ip("127.77.66.3")).await;
    let client = pod("client", "127.77.66.2");
    let backend = endpoint(pod("backend", "127.77.66.3"), "server", 80, server.port());
    asked.tell(&[&backend], &[&service("server", &["10.96.66.1"], 80, None)]);
    asked.world.serve(&client);
    asked.world.serve(&backend);
    let mut stream = asked.world.enter(&client, at("10.96.66.1:80")).await;
    // It has been asked for in vain by now, or is about to be.
    tokio::task::yield_now().await;
    asked.tell(&[&client], &[]);
    converse(&mut stream).await;
}

#[tokio::test]
async fn a_waypoint_is_known_by_the_time_it_is_judged() {
    let mut asked = Asked::new(true).await;
    let app_ip = "127.77.67.2";
    let target = application(ip(app_ip)).await;
    let app = guarded(endpoint(pod("app", app_ip), "app", 80, target.port()), "app", target.port(), "wp");
    let services = [&service("app", &["10.96.67.2"], 80, Some("wp")), &service("wp", &["10.96.67.3"], 15008, None)];
    asked.tell(&[&app, &waypoint("wp", "127.77.67.3")], &services);
    asked.world.serve(&app);
    let mut headers = HeaderMap::new();
    headers.insert("ambit-source", HeaderValue::from_str(&id("client").to_string()).expect("a value"));
    let authority = target.to_string();
    let mut tunnel =
        connect(&asked.world, "wp", "127.77.67.3", app_ip, &authority, headers.clone()).await.expect("let in");
    converse(&mut tunnel).await;
    // Whoever has its key, but not its address, isn't it.
    let outcome = connect(&asked.world, "wp", "127.77.67.9", app_ip, &authority, headers).await;
    assert!(matches!(outcome, Err(ConnectError::Refused { .. })), "{outcome:?}");
    assert_eq!(asked.world.record().await.enforcer, Enforcer::WaypointGuard);
}

#[tokio::test]
async fn what_a_waypoint_speaks_for_is_known_by_the_time_it_is_asked() {
    let asked = Asked::new(true).await;
    let own = "127.77.68.2";
    let target = application(ip(own)).await;
    let bound = service("server", &["10.96.68.1"], 80, Some("app"));
    asked.tell(&[&waypoint("app", own)], &[&bound, &service("app", &["10.96.68.2"], 15008, None)]);
    asked.world.serve(&waypoint("app", own));
    let authority = |ip: &str| format!("{ip}:{}", target.port());
    let headers = HeaderMap::new;
    let mut tunnel =
        connect(&asked.world, "client", "127.77.68.3", own, &authority("10.96.68.1"), headers()).await.expect("let in");
    converse(&mut tunnel).await;
    let outcome = connect(&asked.world, "client", "127.77.68.3", own, &authority("10.96.68.9"), headers()).await;
    let Err(ConnectError::Refused { status, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(status, StatusCode::BAD_REQUEST, "nobody's address leads nowhere");
}

#[tokio::test]
async fn questions_are_bounded_per_pod() {
    let asked = Asked::new(false).await;
    let on_demand = OnDemand::new(asked.handle.clone());
    let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
    let names: Vec<String> =
        (0..=MAX_DEMANDS_PER_POD).map(|number| format!("/10.0.{}.{}", number / 250, number % 250)).collect();
    let mut questions: Vec<_> = names.iter().map(|name| Box::pin(on_demand.ask(&greedy, name))).collect();
    let one_more = questions.pop().expect("one more");
    let mut all = futures_util::future::join_all(questions);
    assert!(futures_util::poll!(&mut all).is_pending());
    assert!(matches!(one_more.await, Err(AskError::Busy(_))));
    let mut others = Box::pin(on_demand.ask(&other, "/10.0.0.1"));
    assert!(futures_util::poll!(&mut others).is_pending(), "another pod may ask");
    drop(all);
    let mut again = Box::pin(on_demand.ask(&greedy, "/10.0.0.1"));
    assert!(futures_util::poll!(&mut again).is_pending(), "who gave up makes room");
}

/// Connects until it is let through.
async fn reached(asked: &Asked, client: &Workload, destination: &str) {
    let found = async { while asked.world.enter(client, at(destination)).await.read(&mut [0]).await.is_err() {} };
    timeout(2 * PATIENCE, found).await.expect("found in time");
}

/// Waits longer than other tests do.
async fn was_reset_within(stream: &mut tokio::net::TcpStream, patience: std::time::Duration) {
    let outcome = timeout(patience, stream.read(&mut [0])).await.expect("an end in time");
    assert!(outcome.is_err(), "{outcome:?}");
}
