//! Traffic addressed to workloads by their own addresses.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ambit_hbone::ConnectError;
use ambit_policy::Verdict;
use ambit_xds::{
    ADDRESS_TYPE,
    waypoint::{Bundle, TrafficPolicy},
    workload::{
        Address, GatewayAddress, NamespacedHostname, Service, TunnelProtocol, Workload, address,
        gateway_address::Destination,
    },
};
use http::StatusCode;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend,
    mesh::{HOSTNAME, Mesh, NAMESPACE, Shape, allow_all, exchange, policy, soon, status},
    wire,
};

/// Name of the waypoint's own service.
const OWN: &str = "waypoint.kagenti-system.svc.cluster.local";

fn bound_to(hostname: &str) -> Option<GatewayAddress> {
    let destination = NamespacedHostname { namespace: NAMESPACE.to_owned(), hostname: hostname.to_owned() };
    Some(GatewayAddress { destination: Some(Destination::Hostname(destination)), hbone_mtls_port: 15008 })
}

/// A pod named `direct` that is called by its address.
fn direct(ip: IpAddr, waypoint: Option<GatewayAddress>, hbone: bool) -> Workload {
    let IpAddr::V4(ip) = ip else { panic!("an IPv4 address") };
    Workload {
        uid: format!("Kubernetes//Pod/{NAMESPACE}/direct"),
        name: "direct".to_owned(),
        namespace: NAMESPACE.to_owned(),
        addresses: vec![ip.octets().to_vec()],
        tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        service_account: "mlflow".to_owned(),
        waypoint,
        ..Workload::default()
    }
}

fn put(mesh: &Mesh, workload: &Workload) {
    let address = Address { r#type: Some(address::Type::Workload(workload.clone())) };
    mesh.apply(ADDRESS_TYPE, vec![(workload.uid.clone(), address.encode_to_vec())], &[]);
}

/// Has the waypoint front workloads under these policies, and the service under none.
fn front(mesh: &Mesh, policies: &[Value]) {
    limit(mesh, policies, Vec::new());
}

/// The same with rate limits and faults.
fn limit(mesh: &Mesh, policies: &[Value], workload_traffic_policies: Vec<TrafficPolicy>) {
    let bundle = Bundle {
        hostname: OWN.to_owned(),
        workload_policies: policies.iter().map(wire::policy).collect(),
        workload_traffic_policies,
        ..wire::bundle(vec![wire::service(&[])])
    };
    mesh.store.apply(&[wire::response(&bundle)]).expect("readable resources");
}

/// A mesh whose pod at this address is `direct`, not the service's endpoint.
async fn mesh_with(app: SocketAddr, waypoint: Option<GatewayAddress>, hbone: bool, policies: &[Value]) -> Mesh {
    let mesh = Mesh::start(Shape::of(app)).await;
    mesh.apply(ADDRESS_TYPE, Vec::new(), &[&format!("Kubernetes//Pod/{NAMESPACE}/mlflow-0")]);
    put(&mesh, &direct(app.ip(), waypoint, hbone));
    front(&mesh, policies);
    mesh
}

fn only_get() -> Value {
    policy(json!({"action": "ALLOW", "rules": [
        {"from": [{"source": {"principals": ["cluster.local/ns/kagenti-system/sa/ui"]}}],
         "to": [{"operation": {"methods": ["GET"]}}]}]}))
}

fn refused(outcome: Result<ambit_hbone::Tunnel, ConnectError>) -> StatusCode {
    match outcome {
        Err(ConnectError::Refused { status, .. }) => status,
        outcome => panic!("not refused: {outcome:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_a_pod_are_judged_and_carried_to_it() {
    let app = backend::Raw::start().await.address;
    let mut mesh = mesh_with(app, bound_to(OWN), true, &[only_get()]).await;
    let mut stream = mesh.connect(&mesh.pool(), "ui", &app.to_string()).await.expect("a tunnel");
    let (head, _) = exchange(&mut stream, "GET /models HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status(&head), 200, "{head}");
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/direct"));
    assert_eq!((record.destination.service, record.destination.address), (None, Some(app)));
    {
        let arrivals = mesh.arrivals.lock().expect("unpoisoned");
        let [arrival] = &arrivals[..] else { panic!("one tunnel to the pod: {arrivals:?}") };
        assert_eq!(arrival.authority, app.to_string());
        assert_eq!(arrival.peer.service_account(), "waypoint");
        assert!(arrival.source.ends_with("/sa/ui"), "{arrival:?}");
    }
    let (head, _) = exchange(&mut stream, "DELETE /models HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status(&head), 403);
    let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
    assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/direct"));
    let mut stream = mesh.connect(&mesh.pool(), "stranger", &app.to_string()).await.expect("a tunnel");
    let (head, _) = exchange(&mut stream, "GET /models HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status(&head), 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_a_pod_are_counted_as_those_to_a_service_are() {
    let app = backend::Raw::start().await.address;
    let mesh = mesh_with(app, bound_to(OWN), true, &[allow_all()]).await;
    let spec = json!({"rateLimits": [{"requests": 1, "interval": "1h"}]});
    let json = json!({"namespace": NAMESPACE, "name": "t", "spec": spec}).to_string().into_bytes();
    let (namespace, name) = (NAMESPACE.to_owned(), "t".to_owned());
    limit(&mesh, &[allow_all()], vec![TrafficPolicy { namespace, name, json, rejection: String::new() }]);
    for expected in [[200, 429], [429, 429]] {
        let mut stream = mesh.connect(&mesh.pool(), "ui", &app.to_string()).await.expect("a tunnel");
        for expected in expected {
            let (head, _) = exchange(&mut stream, "GET /models HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert_eq!(status(&head), expected, "{head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_are_judged_as_tcp_and_pods_outside_the_mesh_are_reached_plainly() {
    for hbone in [true, false] {
        for greets in [true, false] {
            let app = backend::tcp(greets).await;
            let mut mesh = mesh_with(app, bound_to(OWN), hbone, &[allow_all()]).await;
            let mut stream = mesh.connect(&mesh.pool(), "any", &app.to_string()).await.expect("a tunnel");
            if greets {
                let mut hello = [0; 5];
                soon(stream.read_exact(&mut hello)).await.expect("greeted");
                assert_eq!(&hello, b"hello");
            } else {
                soon(stream.write_all(b"\x00\x01")).await.expect("written");
                let mut back = [0; 2];
                soon(stream.read_exact(&mut back)).await.expect("echoed");
            }
            let record = mesh.expect_record(Verdict::Allow, None).await;
            assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/direct"));
            assert_eq!(mesh.sources().len(), usize::from(hbone), "through HBONE where there is some");
        }
    }
    let app = backend::tcp(false).await;
    let mesh = mesh_with(app, bound_to(OWN), true, &[only_get()]).await;
    let mut stream = mesh.connect(&mesh.pool(), "ui", &app.to_string()).await.expect("a tunnel");
    soon(stream.write_all(b"\x00\x01")).await.expect("written");
    let end = soon(stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "a policy on requests allows no bytes: {end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_bound_here_is_not_served() {
    let app = backend::tcp(false).await;
    let cases = [
        ("a pod without a waypoint", None),
        ("a pod of another waypoint", bound_to("other.kagenti-system.svc.cluster.local")),
        ("a pod whose waypoint can't be had", bound_to("waypoint.kagenti-system.waypoint-missing.invalid")),
    ];
    for (what, waypoint) in cases {
        let mut mesh = mesh_with(app, waypoint, true, &[allow_all()]).await;
        let outcome = mesh.connect(&mesh.pool(), "any", &app.to_string()).await;
        assert_eq!(refused(outcome), StatusCode::NOT_FOUND, "{what}");
        let record = mesh.expect_record(Verdict::Deny, Some(404)).await;
        assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/direct"), "{what}");
        assert!(mesh.sources().is_empty());
    }
    let mesh = mesh_with(app, bound_to(OWN), true, &[allow_all()]).await;
    for port in [15001, 15006, 15008, 15053, 15080, 0] {
        let outcome = mesh.connect(&mesh.pool(), "any", &format!("{}:{port}", app.ip())).await;
        assert_eq!(refused(outcome), StatusCode::SERVICE_UNAVAILABLE, "{port}");
    }
    // A waypoint for services only says so by naming no service of its own.
    mesh.bundle(Vec::new());
    let outcome = mesh.connect(&mesh.pool(), "any", &app.to_string()).await;
    assert_eq!(refused(outcome), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_address_is_the_pods_though_a_service_claims_it() {
    let app = backend::tcp(false).await;
    let mut mesh = mesh_with(app, bound_to(OWN), true, &[policy(json!({"action": "ALLOW"}))]).await;
    let IpAddr::V4(ip) = app.ip() else { panic!("an IPv4 address") };
    let thief = Service {
        name: "mlflow".to_owned(),
        namespace: NAMESPACE.to_owned(),
        hostname: HOSTNAME.to_owned(),
        addresses: vec![ambit_xds::workload::NetworkAddress { address: ip.octets().to_vec(), ..Default::default() }],
        ports: vec![ambit_xds::workload::Port { service_port: app.port().into(), target_port: 1, app_protocol: 0 }],
        ..Service::default()
    };
    let address = Address { r#type: Some(address::Type::Service(thief)) };
    mesh.apply(ADDRESS_TYPE, vec![(format!("{NAMESPACE}/{HOSTNAME}"), address.encode_to_vec())], &[]);
    let mut stream = mesh.connect(&mesh.pool(), "any", &app.to_string()).await.expect("a tunnel");
    soon(stream.write_all(b"\x00")).await.expect("written");
    let end = soon(stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "the workload's policies count: {end:?}");
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/direct"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_connection_ends_with_its_permission_its_binding_or_its_pod() {
    type Change = fn(&Mesh, SocketAddr);
    let changes: [(&str, Change); 4] = [
        ("denied", |mesh, _| front(mesh, &[policy(json!({"action": "ALLOW"}))])),
        ("bound elsewhere", |mesh, app| put(mesh, &direct(app.ip(), bound_to("other.x.svc.cluster.local"), true))),
        ("moved", |mesh, _| put(mesh, &direct([127, 0, 0, 99].into(), bound_to(OWN), true))),
        ("gone", |mesh, _| mesh.apply(ADDRESS_TYPE, Vec::new(), &[&format!("Kubernetes//Pod/{NAMESPACE}/direct")])),
    ];
    for (what, change) in changes {
        let app = backend::tcp(false).await;
        let mut mesh = mesh_with(app, bound_to(OWN), true, &[allow_all()]).await;
        let mut stream = mesh.connect(&mesh.pool(), "any", &app.to_string()).await.expect("a tunnel");
        soon(stream.write_all(b"\x00")).await.expect("written");
        soon(stream.read_exact(&mut [0])).await.expect("echoed");
        mesh.expect_record(Verdict::Allow, None).await;
        let changed = Instant::now();
        change(&mesh, app);
        let end = soon(stream.read(&mut [0])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{what}: {end:?}");
        assert!(changed.elapsed() < Duration::from_secs(1), "{what}: {:?}", changed.elapsed());
        mesh.expect_record(Verdict::Deny, None).await;
    }
}
