//! A mesh of other shapes than the example: L4 policies, TCP behind a waypoint, plaintext, and the host's network.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, Place, each_user};

const NAMESPACES: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alice, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: bob, namespace: shop}}
---
apiVersion: networking.example/v9
kind: Unheard
metadata: {name: of, namespace: shop}
"#;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          command: [ambit, echo, --listen, "0.0.0.0:8080"]
          ports: [{name: web, containerPort: 8080}]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: web}]
"#;

const ONLY_ALICE: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-alice, namespace: shop}
spec:
  selector: {matchLabels: {app: APP}}
  rules:
    - from: [{source: {principals: ["cluster.local/ns/shop/sa/alice"]}}]
"#;

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
"#;

const ALICE: &[&str] = &["-n", "shop", "--sa", "alice"];
const BOB: &[&str] = &["-n", "shop", "--sa", "bob"];
const OUTSIDER: &[&str] = &["-n", "outside", "--sa", "default"];

fn peer_deployment(place: &Place) -> String {
    let peer = place.path("peer");
    // A running program can't be overwritten.
    if !peer.exists() {
        fs::copy(env!("CARGO_BIN_EXE_peer"), &peer).expect("the peer can be copied");
    }
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: peer, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: peer}}}}
  template:
    metadata: {{labels: {{app: peer}}}}
    spec:
      containers:
        - name: peer
          command: ["{}", listen, "0.0.0.0:7000"]
          readinessProbe: {{tcpSocket: {{port: 7000}}, periodSeconds: 1}}
"#,
        peer.display()
    )
}

fn peer_service(labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: peer, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{selector: {{app: peer}}, ports: [{{port: 7000}}]}}\n"
    )
}

fn up<'a>(place: &'a Place, documents: &[&str]) -> Mesh<'a> {
    place.write("shop/base.yaml", NAMESPACES);
    place.write("shop/rest.yaml", &documents.join("\n---\n"));
    Mesh::up(place, &["-f", "shop/base.yaml", "-f", "shop/rest.yaml", "--access-log", "access.jsonl"])
}

fn dial(mesh: &Mesh, place: &Place, who: &[&str], lines: &[&str]) -> String {
    let peer = place.path("peer").display().to_string();
    mesh.run(&[who, &["--", &peer, "dial", "peer:7000"], lines].concat()).stdout
}

fn records(place: &Place) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(place.path("access.jsonl")).unwrap_or_default();
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn wait_for_record(place: &Place, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = records(place).into_iter().rfind(|record| wanted(record)) {
            return found;
        }
        assert!(Instant::now() < deadline, "no such record among {:#?}", records(place));
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_l4_policy_judges_identities_at_the_node_proxy() {
    each_user(|place| {
        let mesh = up(place, &[WEB, &ONLY_ALICE.replace("APP", "web")]);
        assert!(mesh.printed().contains("Unheard"), "an unknown kind is ignored with a note:\n{}", mesh.printed());
        mesh.wait_for("is ready");
        let alice = mesh.ask(ALICE, "web:80", &[("GET", "/"), ("POST", "/x")]);
        assert_eq!(
            (alice[0]["status"].as_u64(), alice[1]["status"].as_u64()),
            (Some(200), Some(200)),
            "{}",
            mesh.printed()
        );
        for who in [BOB, OUTSIDER] {
            let refused = mesh.ask(who, "web.shop:80", &[("GET", "/")]);
            assert_eq!(refused[0]["status"], 403, "{refused:?}");
            assert!(refused[0]["body"].as_str().is_some_and(|body| body.contains("ztunnel-inbound")), "{refused:?}");
        }
        let denied =
            wait_for_record(place, |record| record["verdict"] == "deny" && !record["source"]["identity"].is_null());
        assert_eq!(denied["enforcer"]["kind"], "ztunnel-inbound");
        assert_eq!(denied["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/bob");
        assert!(denied["reason"].as_str().expect("a reason").contains("shop/only-alice"), "{denied}");
    });
}

#[test]
fn plaintext_from_outside_passes_where_no_policy_forbids_it() {
    each_user(|place| {
        let mesh = up(place, &[WEB]);
        mesh.wait_for("is ready");
        let answers = mesh.ask(OUTSIDER, "web.shop:80", &[("GET", "/")]);
        assert_eq!(answers[0]["status"], 200, "{answers:?}\n{}", mesh.printed());
        let record = wait_for_record(place, |record| record["verdict"] == "allow");
        assert!(record["source"]["identity"].is_null(), "{record}");
    });
}

#[test]
fn a_server_first_protocol_goes_through_a_waypoint_and_is_judged_as_tcp() {
    each_user(|place| {
        let deny_bob = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: not-bob, namespace: shop}\n\
             spec:\n  targetRefs: [{kind: Service, group: '', name: peer}]\n  action: DENY\n  rules:\n  - from: [{source: {serviceAccounts: [bob]}}]\n    to: [{operation: {ports: ['7000']}}]\n";
        let service = peer_service("istio.io/use-waypoint: gate");
        let mesh = up(place, &[&peer_deployment(place), &service, GATEWAY, deny_bob]);
        mesh.wait_for("is ready");
        let alice = dial(&mesh, place, ALICE, &["one", "two"]);
        let lines: Vec<&str> = alice.lines().collect();
        assert_eq!(&lines[1..], ["again one", "again two"], "{alice}\n{}", mesh.printed());
        assert!(lines[0].starts_with("hello 10.244."), "{alice}");
        let bob = dial(&mesh, place, BOB, &["one"]);
        assert!(bob.starts_with("refused"), "{bob}\n{}", mesh.printed());
        let denied = wait_for_record(place, |record| record["verdict"] == "deny");
        assert_eq!(
            (denied["policy"].as_str(), denied["protocol"].as_str()),
            (Some("shop/not-bob"), Some("TCP")),
            "{denied}"
        );
    });
}

#[test]
fn behind_a_waypoint_an_l4_policy_judges_the_original_client() {
    each_user(|place| {
        let service = WEB.replace(
            "metadata: {name: web, namespace: shop}\nspec:\n  selector",
            "metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gate}}\nspec:\n  selector",
        );
        assert_ne!(service, WEB);
        let mesh = up(place, &[&service, GATEWAY, &ONLY_ALICE.replace("APP", "web")]);
        mesh.wait_for("is ready");
        let alice = mesh.ask(ALICE, "web:80", &[("GET", "/")]);
        assert_eq!(alice[0]["status"], 200, "{alice:?}\n{}", mesh.printed());
        let bob = mesh.ask(BOB, "web:80", &[("GET", "/")]);
        assert_ne!(bob[0]["status"], 200, "{bob:?}");
        let denied = wait_for_record(place, |record| {
            record["verdict"] == "deny" && record["enforcer"]["kind"] == "ztunnel-inbound"
        });
        assert_eq!(denied["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/bob", "{denied}");
    });
}

/// Pods of a headless service are called by their own addresses, which belong to their own waypoint.
#[test]
fn a_pod_with_a_waypoint_of_its_own_is_judged_there_when_called_by_its_address() {
    each_user(|place| {
        let web = WEB
            .replace("metadata: {labels: {app: web}}", "metadata: {labels: {app: web, istio.io/use-waypoint: gate}}")
            .replace("  selector: {app: web}\n", "  selector: {app: web}\n  clusterIP: None\n");
        let gateway =
            GATEWAY.replace("namespace: shop}", "namespace: shop, labels: {istio.io/waypoint-for: workload}}");
        let alice_gets = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {name: alice-gets, namespace: shop}\nspec:\n  targetRefs: [{kind: Gateway, group: \
             gateway.networking.k8s.io, name: gate}]\n  rules:\n  - from: [{source: {serviceAccounts: [alice]}}]\n    \
             to: [{operation: {methods: [GET]}}]\n";
        let mesh = up(place, &[&web, &gateway, alice_gets]);
        mesh.wait_for("is ready");
        let alice = mesh.ask(ALICE, "web:8080", &[("GET", "/"), ("POST", "/x")]);
        assert_eq!((&alice[0]["status"], &alice[1]["status"]), (&200.into(), &403.into()), "{}", mesh.printed());
        let bob = mesh.ask(BOB, "web:8080", &[("GET", "/")]);
        assert_eq!(bob[0]["status"], 403, "{bob:?}");
        let denied = wait_for_record(place, |record| record["verdict"] == "deny" && record["method"] == "GET");
        assert_eq!(denied["enforcer"]["name"], "shop/gate", "{denied}");
        let workload = denied["destination"]["workload"].as_str().expect("a workload");
        assert!(workload.starts_with("shop/web"), "{denied}");
        // Nobody gets past the waypoint: not without a tunnel either.
        let outsider = mesh.ask(OUTSIDER, "web.shop:8080", &[("GET", "/")]);
        assert!(outsider[0]["status"] != 200, "{outsider:?}");
        wait_for_record(place, |record| record["enforcer"]["kind"] == "waypoint-guard");
    });
}

#[test]
fn an_open_connection_that_an_edit_forbids_is_closed() {
    each_user(|place| {
        let policy = ONLY_ALICE.replace("APP", "peer");
        let mesh = up(place, &[&peer_deployment(place), &peer_service(""), &policy]);
        mesh.wait_for("is ready");
        thread::scope(|scope| {
            let open = scope.spawn(|| (dial(&mesh, place, ALICE, &[]), Instant::now()));
            wait_for_record(place, |record| record["verdict"] == "allow");
            let edited =
                [peer_deployment(place), peer_service(""), policy.replace("sa/alice", "sa/bob")].join("\n---\n");
            let start = Instant::now();
            place.write("shop/rest.yaml", &edited);
            let (printed, ended) = open.join().expect("the client ends");
            assert!(printed.contains("hello") && printed.contains("end"), "{printed}");
            // 100 ms is the promise; the rest is the client's own end and this machine's noise.
            assert!(ended - start < Duration::from_millis(400), "closed only after {:?}", ended - start);
        });
        let closed = wait_for_record(place, |record| record["verdict"] == "deny");
        assert!(closed["reason"].as_str().expect("a reason").contains("policy changed"), "{closed}");
    });
}

#[test]
fn what_is_not_the_meshs_goes_out_from_the_hosts_side() {
    each_user(|place| {
        let Some(own) = own_address() else {
            assert!(std::env::var_os("CI").is_none(), "this machine has no address besides loopback");
            eprintln!("SKIPPED: this machine has no address besides loopback");
            return;
        };
        let listener = TcpListener::bind((own.as_str(), 0)).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let server = thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.expect("a connection");
                let mut request = [0; 1024];
                let length = stream.read(&mut request).expect("a request");
                assert!(request[..length].starts_with(b"GET /outside"));
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhost")
                    .expect("sent");
            }
        });
        let mesh = up(place, &[WEB]);
        for who in [ALICE, OUTSIDER] {
            let answers = mesh.ask(who, &format!("{own}:{port}"), &[("GET", "/outside")]);
            assert_eq!(
                (answers[0]["status"].as_u64(), answers[0]["body"].as_str()),
                (Some(200), Some("host")),
                "{answers:?}"
            );
        }
        server.join().expect("the server saw what it expected");
        let unknown = mesh.ask(ALICE, "10.244.200.200:80", &[("GET", "/")]);
        assert_eq!(unknown[0]["status"], 403, "an unknown pod address must not be passed on: {unknown:?}");
        wait_for_record(place, |record| {
            record["verdict"] == "deny" && record["destination"]["address"] == "10.244.200.200:80"
        });
    });
}

/// The address this machine would use to reach others; nothing is sent.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| ip.to_string())
}
