//! DestinationRules at work: which endpoint gets a request, and which gets none.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use ambit_policy::Verdict;
use ambit_xds::{
    ADDRESS_TYPE,
    waypoint::{AttachedDestinationRule, AttachedRoute, BoundService, DestinationSettings, SubsetMembers},
    workload::{
        Address, LoadBalancing, Locality, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, address,
        load_balancing,
    },
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{
    mesh::{HOSTNAME, Mesh, NAMESPACE, PORT, Pod, Shape, allow_all, exchange, header, response, service, soon, status},
    wire,
};

pub const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// An HTTP/1.1 application that says its own name, with the status that it is told to.
#[derive(Clone)]
pub struct App {
    pub address: SocketAddr,
    pub status: Arc<AtomicU16>,
    pub requests: Arc<AtomicUsize>,
    pub answered: Arc<AtomicUsize>,
    /// Connections so far, and those that are open.
    pub connections: Arc<AtomicUsize>,
    pub open: Arc<AtomicUsize>,
    /// A request for `/slow` waits for a permit.
    pub release: Arc<Semaphore>,
}

impl App {
    pub async fn at(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("free port");
        let app = Self {
            address: listener.local_addr().expect("bound"),
            status: Arc::new(AtomicU16::new(200)),
            requests: Arc::default(),
            answered: Arc::default(),
            connections: Arc::default(),
            open: Arc::default(),
            release: Arc::new(Semaphore::new(0)),
        };
        let serving = app.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                serving.open.fetch_add(1, Ordering::SeqCst);
                let app = serving.clone();
                tokio::spawn(async move {
                    app.serve(stream).await;
                    app.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        app
    }

    async fn serve(&self, mut stream: TcpStream) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            self.requests.fetch_add(1, Ordering::SeqCst);
            if head.starts_with(b"GET /slow ") {
                self.release.acquire().await.expect("never closed").forget();
            }
            let (status, ip) = (self.status.load(Ordering::SeqCst), self.address.ip());
            let answer = format!("HTTP/1.1 {status} x\r\nx-app: {ip}\r\ncontent-length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A mesh whose service has these applications for endpoints.
pub async fn mesh(apps: &[&App]) -> Mesh {
    let mut shape = Shape::of(apps[0].address);
    shape.pods = apps.iter().map(|app| Pod { app: app.address, hbone: false }).collect();
    shape.policies = vec![allow_all()];
    Mesh::start(shape).await
}

pub fn bound(rules: &[Value]) -> BoundService {
    let attached = |rule: &Value| AttachedDestinationRule {
        namespace: NAMESPACE.to_owned(),
        name: rule["name"].as_str().expect("named").to_owned(),
        json: rule.to_string().into_bytes(),
        rejection: String::new(),
    };
    let destination = DestinationSettings { rules: rules.iter().map(attached).collect(), subsets: Vec::new() };
    BoundService { destination: Some(destination), ..wire::service(&[allow_all()]) }
}

pub fn rule(traffic_policy: &Value) -> Value {
    json!({"namespace": NAMESPACE, "name": "r", "spec": {"host": "mlflow", "trafficPolicy": traffic_policy}})
}

/// Puts this traffic policy in force.
pub fn treat(mesh: &Mesh, traffic_policy: &Value) {
    mesh.bundle(vec![bound(&[rule(traffic_policy)])]);
}

/// An HTTPRoute of the service's own namespace.
pub fn attached(spec: &Value) -> AttachedRoute {
    let route = json!({"namespace": NAMESPACE, "name": "r", "spec": {"HTTPRoute": spec}});
    AttachedRoute {
        kind: "HTTPRoute".to_owned(),
        namespace: NAMESPACE.to_owned(),
        name: "r".to_owned(),
        json: route.to_string().into_bytes(),
        cluster_domain: "cluster.local".to_owned(),
        ..AttachedRoute::default()
    }
}

/// Who answers a request, and how.
async fn ask(stream: &mut ambit_hbone::Tunnel, request: &str) -> (u16, String) {
    let (head, _) = exchange(stream, request).await;
    (status(&head), header(&head, "x-app").unwrap_or_default().to_owned())
}

/// How many of these requests each endpoint answers.
async fn spread(mesh: &Mesh, requests: &[String]) -> BTreeMap<String, usize> {
    let mut stream = mesh.tunnel("any").await;
    let mut answers = BTreeMap::new();
    for request in requests {
        *answers.entry(ask(&mut stream, request).await.1).or_insert(0) += 1;
    }
    answers
}

fn times(count: usize) -> Vec<String> {
    vec![GET.to_owned(); count]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_gets_nothing_for_a_while() {
    let (good, bad) = (App::at("127.0.0.2").await, App::at("127.0.0.3").await);
    bad.status.store(503, Ordering::SeqCst);
    let mesh = mesh(&[&good, &bad]).await;
    for (setting, most) in [("consecutive5xxErrors", 3), ("consecutiveGatewayErrors", 2)] {
        let outliers = json!({setting: most, "baseEjectionTime": "1h", "maxEjectionPercent": 50});
        bad.requests.store(0, Ordering::SeqCst);
        treat(&mesh, &json!({"outlierDetection": outliers}));
        spread(&mesh, &times(40)).await;
        assert_eq!(bad.requests.load(Ordering::SeqCst), most, "{setting}");
    }
    // Applying the same again forgets nothing.
    treat(
        &mesh,
        &json!({"outlierDetection": {"consecutiveGatewayErrors": 2, "baseEjectionTime": "1h",
        "maxEjectionPercent": 50}, "loadBalancer": {"simple": "RANDOM"}}),
    );
    assert_eq!(spread(&mesh, &times(20)).await, BTreeMap::from([("127.0.0.2".to_owned(), 20)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_failed_comes_back() {
    let (good, bad) = (App::at("127.0.0.2").await, App::at("127.0.0.3").await);
    bad.status.store(500, Ordering::SeqCst);
    let mesh = mesh(&[&good, &bad]).await;
    let outliers = json!({"consecutive5xxErrors": 1, "baseEjectionTime": "50ms", "interval": "10ms",
        "maxEjectionPercent": 50});
    treat(&mesh, &json!({"outlierDetection": outliers, "loadBalancer": {"simple": "ROUND_ROBIN"}}));
    let mut stream = mesh.tunnel("any").await;
    while bad.requests.load(Ordering::SeqCst) == 0 {
        ask(&mut stream, GET).await;
    }
    bad.status.store(200, Ordering::SeqCst);
    soon(async {
        while bad.requests.load(Ordering::SeqCst) < 2 {
            ask(&mut stream, GET).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_left_out_than_may_be() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await];
    apps.iter().for_each(|app| app.status.store(500, Ordering::SeqCst));
    let mut mesh = mesh(&[&apps[0], &apps[1]]).await;
    let outliers = |most: u32, least: u32| {
        json!({"outlierDetection": {"consecutive5xxErrors": 1, "baseEjectionTime": "1h", "maxEjectionPercent": most,
            "minHealthPercent": least}})
    };
    treat(&mesh, &outliers(49, 0));
    assert_eq!(spread(&mesh, &times(40)).await.len(), 2, "one of two is more than 49 %");
    // Both are left out, so nobody is there.
    treat(&mesh, &outliers(100, 0));
    let mut stream = mesh.tunnel("any").await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(ask(&mut stream, GET).await.0);
    }
    assert_eq!(answers, [500, 500, 503, 503]);
    for _ in 0..42 {
        mesh.expect_record(Verdict::Allow, Some(500)).await;
    }
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("no healthy endpoint"), "{}", record.reason);
    // Too few are left, so all are used.
    treat(&mesh, &outliers(100, 60));
    for _ in 0..10 {
        assert_eq!(ask(&mut stream, GET).await.0, 500);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_cannot_be_reached_counts_as_failing() {
    let good = App::at("127.0.0.2").await;
    let nobody = App { address: SocketAddr::new("127.0.0.3".parse().expect("address"), 9), ..good.clone() };
    let mesh = mesh(&[&good, &nobody]).await;
    let outliers = json!({"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 1,
        "consecutive5xxErrors": 0, "baseEjectionTime": "1h", "maxEjectionPercent": 50});
    treat(&mesh, &json!({"outlierDetection": outliers}));
    // Another is tried, so the client doesn't notice.
    assert_eq!(spread(&mesh, &times(20)).await, BTreeMap::from([("127.0.0.2".to_owned(), 20)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_take_turns() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await, App::at("127.0.0.4").await];
    let mesh = mesh(&[&apps[0], &apps[1], &apps[2]]).await;
    treat(&mesh, &json!({"loadBalancer": {"simple": "ROUND_ROBIN"}}));
    let spread = spread(&mesh, &times(30)).await;
    assert_eq!(spread.values().copied().collect::<Vec<_>>(), [10, 10, 10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_less_busy_of_two_is_chosen_and_any_at_random() {
    let (idle, busy) = (App::at("127.0.0.2").await, App::at("127.0.0.3").await);
    let mesh = mesh(&[&idle, &busy]).await;
    // Fills one endpoint with requests that wait.
    let mut waiting = Vec::new();
    while busy.requests.load(Ordering::SeqCst) < 3 {
        let mut stream = mesh.tunnel("any").await;
        soon(stream.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")).await.expect("written");
        soon(stream.flush()).await.expect("flushed");
        let before = waiting.len() + 1;
        soon(async {
            while idle.requests.load(Ordering::SeqCst) + busy.requests.load(Ordering::SeqCst) < before {
                tokio::task::yield_now().await;
            }
        })
        .await;
        waiting.push(stream);
    }
    idle.release.add_permits(100);
    soon(async {
        while idle.answered.load(Ordering::SeqCst) < idle.requests.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    treat(&mesh, &json!({"loadBalancer": {"simple": "RANDOM"}}));
    assert_eq!(spread(&mesh, &times(60)).await.len(), 2);
    treat(&mesh, &json!({"loadBalancer": {"simple": "LEAST_REQUEST"}}));
    let spread = spread(&mesh, &times(60)).await;
    // Both draws fall on the busy one in a quarter of all cases.
    assert!(spread["127.0.0.2"] > spread.get("127.0.0.3").copied().unwrap_or_default(), "{spread:?}");
    busy.release.add_permits(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_the_same_value_go_to_the_same_endpoint() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await, App::at("127.0.0.4").await];
    let mesh = mesh(&[&apps[0], &apps[1], &apps[2]]).await;
    let header = |user: usize| format!("GET / HTTP/1.1\r\nhost: a\r\nx-user: u{user}\r\n\r\n");
    let cookie = |user: usize| format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: a=b; user=u{user}\r\n\r\n");
    let query = |user: usize| format!("GET /?a=b&user=u{user} HTTP/1.1\r\nhost: a\r\n\r\n");
    type Request<'a> = &'a dyn Fn(usize) -> String;
    for (hash, request) in [
        (json!({"httpHeaderName": "X-User"}), &header as Request<'_>),
        (json!({"httpCookie": {"name": "user"}}), &cookie),
        (json!({"httpQueryParameterName": "user"}), &query),
    ] {
        treat(&mesh, &json!({"loadBalancer": {"consistentHash": hash}}));
        let mut stream = mesh.tunnel("any").await;
        let mut owners = Vec::new();
        for user in 0..30 {
            let owner = ask(&mut stream, &request(user)).await.1;
            assert_eq!(ask(&mut stream, &request(user)).await.1, owner, "{hash}");
            owners.push(owner);
        }
        let used: std::collections::BTreeSet<_> = owners.iter().collect();
        assert_eq!(used.len(), 3, "{hash}: {owners:?}");
        // Without the value any endpoint will do.
        assert!(spread(&mesh, &times(30)).await.len() > 1, "{hash}");
        // One that leaves moves its own share only.
        let gone = format!("Kubernetes//Pod/{NAMESPACE}/mlflow-2");
        let left = pod("mlflow-2", apps[2].address, None);
        mesh.apply(ADDRESS_TYPE, vec![], &[&gone]);
        for (user, owner) in owners.iter().enumerate().filter(|(_, owner)| *owner != "127.0.0.4") {
            assert_eq!(ask(&mut stream, &request(user)).await.1, *owner, "{hash}");
        }
        mesh.apply(ADDRESS_TYPE, vec![left], &[]);
    }
    treat(&mesh, &json!({"loadBalancer": {"consistentHash": {"useSourceIp": true}}}));
    assert_eq!(spread(&mesh, &times(30)).await.len(), 1);
}

/// An endpoint as the control plane tells of it.
pub fn pod(name: &str, app: SocketAddr, locality: Option<&str>) -> (String, Vec<u8>) {
    let uid = format!("Kubernetes//Pod/{NAMESPACE}/{name}");
    let std::net::IpAddr::V4(ip) = app.ip() else { panic!("an IPv4 address") };
    let ports =
        PortList { ports: vec![Port { service_port: PORT.into(), target_port: app.port().into(), app_protocol: 0 }] };
    let mut parts = locality.unwrap_or_default().split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = Locality { region: next(), zone: next(), subzone: next() };
    let workload = Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        addresses: vec![ip.octets().to_vec()],
        service_account: "mlflow".to_owned(),
        tunnel_protocol: TunnelProtocol::None as i32,
        services: [(format!("{NAMESPACE}/{HOSTNAME}"), ports)].into(),
        locality: Some(locality),
        ..Workload::default()
    };
    (uid, Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec())
}

/// The waypoint's own workload, at this locality.
fn own(locality: &str) -> (String, Vec<u8>) {
    let (name, value) = pod("client", "127.0.0.1:1".parse().expect("address"), Some(locality));
    let mut address = Address::decode(value.as_slice()).expect("an address");
    if let Some(address::Type::Workload(workload)) = &mut address.r#type {
        workload.services.clear();
    }
    (name, address.encode_to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_are_used_until_they_fail() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await, App::at("127.0.0.4").await];
    let [near, region, far] = &apps;
    let mesh = mesh(&[near, region, far]).await;
    let places = ["eu/1/a", "eu/2/a", "us/1/a"];
    let pods = apps.iter().zip(places).enumerate();
    let mut pods: Vec<_> =
        pods.map(|(index, (app, at))| pod(&format!("mlflow-{index}"), app.address, Some(at))).collect();
    pods.push(own("eu/1/a"));
    mesh.apply(ADDRESS_TYPE, pods, &[]);
    let outliers = json!({"consecutive5xxErrors": 1, "baseEjectionTime": "1h", "maxEjectionPercent": 100});
    let only = |app: &App, count: usize| BTreeMap::from([(app.address.ip().to_string(), count)]);
    treat(&mesh, &json!({"outlierDetection": outliers}));
    assert_eq!(spread(&mesh, &times(20)).await, only(near, 20));
    near.status.store(500, Ordering::SeqCst);
    spread(&mesh, &times(1)).await;
    assert_eq!(spread(&mesh, &times(20)).await, only(region, 20), "the region");
    region.status.store(500, Ordering::SeqCst);
    spread(&mesh, &times(1)).await;
    assert_eq!(spread(&mesh, &times(20)).await, only(far, 20));
    // Switched off, all count the same.
    apps.iter().for_each(|app| app.status.store(200, Ordering::SeqCst));
    treat(&mesh, &json!({"loadBalancer": {"simple": "ROUND_ROBIN", "localityLbSetting": {"enabled": false}}}));
    assert_eq!(spread(&mesh, &times(30)).await.len(), 3);
    // The waypoint moves.
    mesh.apply(ADDRESS_TYPE, vec![own("us/1/a")], &[]);
    treat(&mesh, &json!({"outlierDetection": {"baseEjectionTime": "1h"}}));
    assert_eq!(spread(&mesh, &times(20)).await, only(far, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_rule_the_service_says_who_is_near() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await];
    let mesh = mesh(&[&apps[0], &apps[1]]).await;
    let (name, value) = service(&Shape::of(apps[0].address));
    let mut address = Address::decode(value.as_slice()).expect("an address");
    if let Some(address::Type::Service(service)) = &mut address.r#type {
        service.load_balancing = Some(LoadBalancing {
            routing_preference: vec![load_balancing::Scope::Region as i32],
            mode: load_balancing::Mode::Failover as i32,
            ..LoadBalancing::default()
        });
    }
    let near = pod("mlflow-0", apps[0].address, Some("eu/1/a"));
    let far = pod("mlflow-1", apps[1].address, Some("us/1/a"));
    mesh.apply(ADDRESS_TYPE, vec![(name, address.encode_to_vec()), near, far, own("eu/2/b")], &[]);
    assert_eq!(spread(&mesh, &times(20)).await, BTreeMap::from([("127.0.0.2".to_owned(), 20)]));
    let gone = format!("Kubernetes//Pod/{NAMESPACE}/mlflow-0");
    mesh.apply(ADDRESS_TYPE, vec![], &[&gone]);
    assert_eq!(spread(&mesh, &times(20)).await, BTreeMap::from([("127.0.0.3".to_owned(), 20)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_leaves_costs_no_request() {
    let (stays, leaves) = (App::at("127.0.0.2").await, App::at("127.0.0.3").await);
    for policy in [None, Some(json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": {}}))] {
        let mesh = mesh(&[&stays, &leaves]).await;
        if let Some(policy) = &policy {
            treat(&mesh, policy);
        }
        let mut used = mesh.tunnel("any").await;
        let before = leaves.requests.load(Ordering::SeqCst);
        soon(async {
            while leaves.requests.load(Ordering::SeqCst) == before {
                ask(&mut used, GET).await;
            }
        })
        .await;
        // Requests that are on their way when it begins to leave are answered by it.
        let mut slow = Vec::new();
        soon(async {
            let before = leaves.requests.load(Ordering::SeqCst);
            while leaves.requests.load(Ordering::SeqCst) == before {
                let asked = stays.requests.load(Ordering::SeqCst) + leaves.requests.load(Ordering::SeqCst);
                let mut stream = mesh.tunnel("any").await;
                stream.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("written");
                stream.flush().await.expect("flushed");
                while stays.requests.load(Ordering::SeqCst) + leaves.requests.load(Ordering::SeqCst) == asked {
                    tokio::task::yield_now().await;
                }
                slow.push(stream);
            }
        })
        .await;
        let (name, value) = pod("mlflow-1", leaves.address, None);
        let mut address = Address::decode(value.as_slice()).expect("an address");
        if let Some(address::Type::Workload(workload)) = &mut address.r#type {
            workload.status = WorkloadStatus::Unhealthy as i32;
        }
        mesh.apply(ADDRESS_TYPE, vec![(name, address.encode_to_vec())], &[]);
        let before = leaves.requests.load(Ordering::SeqCst);
        for _ in 0..20 {
            assert_eq!(ask(&mut used, GET).await, (200, "127.0.0.2".to_owned()));
        }
        assert_eq!(leaves.requests.load(Ordering::SeqCst), before, "nothing new: {policy:?}");
        stays.release.add_permits(slow.len());
        leaves.release.add_permits(slow.len());
        for stream in &mut slow {
            assert_eq!(status(&response(stream, false).await.0), 200, "{policy:?}");
        }
        for app in [&stays, &leaves] {
            app.release.forget_permits(usize::MAX);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn localities_get_their_shares() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await, App::at("127.0.0.4").await];
    let mesh = mesh(&[&apps[0], &apps[1], &apps[2]]).await;
    let pods = apps.iter().zip(["eu/1/a", "eu/2/a", "us/1/a"]).enumerate();
    let mut pods: Vec<_> =
        pods.map(|(index, (app, at))| pod(&format!("mlflow-{index}"), app.address, Some(at))).collect();
    pods.push(own("eu/1/a"));
    mesh.apply(ADDRESS_TYPE, pods, &[]);
    let setting = json!({"distribute": [{"from": "eu/*", "to": {"eu/1": 80, "us": 20}}]});
    treat(&mesh, &json!({"loadBalancer": {"localityLbSetting": setting}}));
    let spread = spread(&mesh, &times(400)).await;
    assert_eq!(spread.get("127.0.0.3"), None, "it has no share: {spread:?}");
    assert!((270..370).contains(&spread["127.0.0.2"]), "{spread:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_followed_closes_the_service() {
    let app = App::at("127.0.0.2").await;
    let mut mesh = mesh(&[&app]).await;
    let mut stream = mesh.tunnel("any").await;
    assert_eq!(ask(&mut stream, GET).await.0, 200);
    mesh.expect_record(Verdict::Allow, Some(200)).await;
    let tls = json!({"tls": {"mode": "SIMPLE"}});
    for (rule, reason) in [
        (rule(&tls), "TLS from a waypoint"),
        (rule(&json!({"portLevelSettings": [{"port": {"number": 9}, "tls": {"mode": "MUTUAL"}}]})), "TLS from"),
        (rule(&json!({"proxyProtocol": {"version": "V2"}})), "proxyProtocol"),
        (rule(&json!({"somethingElse": 1})), "can't be read"),
        (rule(&json!({"connectionPool": {"tcp": {"connectTimeout": "soon"}}})), "not a duration"),
        (json!({"namespace": "b", "name": "r", "spec": {"host": "mlflow"}}), "carries another"),
    ] {
        let bundle = ambit_xds::waypoint::Bundle {
            namespace: NAMESPACE.to_owned(),
            name: "waypoint".to_owned(),
            services: vec![bound(&[rule])],
            ..Default::default()
        };
        let response = ambit_xds::DeltaResponse {
            type_url: ambit_xds::WAYPOINT_TYPE.to_owned(),
            resources: vec![ambit_xds::Resource {
                name: format!("{NAMESPACE}/waypoint"),
                version: String::new(),
                value: bundle.encode_to_vec(),
            }],
            removed: Vec::new(),
        };
        let nack = mesh.store.apply(&[response]).expect_err("not as it should be");
        assert!(nack.to_string().contains(reason), "{nack}");
        assert_eq!(ask(&mut stream, GET).await.0, 503, "{reason}");
        let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
        assert!(record.reason.contains(reason), "{}", record.reason);
    }
    assert_eq!(app.requests.load(Ordering::SeqCst), 1);
    treat(&mesh, &json!({}));
    assert_eq!(ask(&mut stream, GET).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_lead_to_subsets() {
    let apps = [App::at("127.0.0.2").await, App::at("127.0.0.3").await, App::at("127.0.0.4").await];
    let mut mesh = mesh(&[&apps[0], &apps[1], &apps[2]]).await;
    let subset = |name: &str| {
        json!({"type": "ExtensionRef", "extensionRef": {"group": "ambit.dev", "kind": "Subset",
        "name": name}})
    };
    let to = |path: &str, name: &str| {
        json!({"matches": [{"path": {"type": "Exact", "value": path}}],
            "backendRefs": [{"name": "mlflow", "port": 5000, "filters": [subset(name)]}]})
    };
    let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "mlflow"}], "rules": [
        to("/v1", "v1"), to("/v2", "v2"), to("/v3", "v3"), to("/v4", "v4"),
        {"backendRefs": [{"name": "mlflow", "port": 5000}]}]});
    let rule = json!({"namespace": NAMESPACE, "name": "r", "spec": {"host": "mlflow", "trafficPolicy":
        {"loadBalancer": {"simple": "ROUND_ROBIN"}}, "subsets": [{"name": "v1"}, {"name": "v2"}, {"name": "v3"}]}});
    let mut service = bound(&[rule]);
    let members = |name: &str, pods: &[usize]| SubsetMembers {
        name: name.to_owned(),
        workloads: pods.iter().map(|pod| format!("Kubernetes//Pod/{NAMESPACE}/mlflow-{pod}")).collect(),
    };
    if let Some(destination) = &mut service.destination {
        destination.subsets = vec![members("v1", &[0]), members("v2", &[1, 2]), members("v3", &[])];
    }
    service.routes = vec![attached(&spec)];
    mesh.bundle(vec![service]);
    let requests = |path: &str| vec![format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"); 6];
    let counts = |pairs: &[(&str, usize)]| pairs.iter().map(|(ip, count)| ((*ip).to_owned(), *count)).collect();
    let expected: [(&str, BTreeMap<String, usize>); 3] = [
        ("/v1", counts(&[("127.0.0.2", 6)])),
        ("/v2", counts(&[("127.0.0.3", 3), ("127.0.0.4", 3)])),
        ("/", counts(&[("127.0.0.2", 2), ("127.0.0.3", 2), ("127.0.0.4", 2)])),
    ];
    for (path, expected) in expected {
        assert_eq!(spread(&mesh, &requests(path)).await, expected, "{path}");
    }
    for _ in 0..18 {
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    for (path, reason) in [("/v3", "no healthy endpoint"), ("/v4", "has no subset `v4`")] {
        let mut stream = mesh.tunnel("any").await;
        assert_eq!(ask(&mut stream, &requests(path)[0]).await.0, 503, "{path}");
        let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
        assert!(record.reason.contains(reason), "{}", record.reason);
    }
}
