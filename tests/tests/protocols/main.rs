//! Every protocol through a running mesh: client, node proxy, waypoint, node proxy, application.
#![forbid(unsafe_code)]

mod refused;
mod streams;

use std::net::Shutdown;

use ambit_tests::{
    Forward, Mesh, Place, each_user,
    http1::{answer_to, rest, send},
    http2::{self, Client},
    tls::Certificate,
};

const ALICE: &str = "shop/alice";
const BOB: &str = "shop/bob";

/// `web` has one port for each way of saying what the application speaks; `raw` carries what isn't read.
const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alice, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: bob, namespace: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: shop}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      containers:
        - name: app
          command: [PROGRAM, app, "0.0.0.0:8080", "0.0.0.0:8443", CERT, KEY]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec:
  selector: {app: app}
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: by-app-protocol, port: 81, targetPort: 8080, appProtocol: kubernetes.io/h2c}
    - {name: grpc-calls, port: 82, targetPort: 8080}
    - {name: unsaid, port: 83, targetPort: 8080}
    - {name: tcp-odd, port: 84, targetPort: 8080, appProtocol: http}
---
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec:
  selector: {app: app}
  ports: [{name: tcp, port: 7000, targetPort: 8080}, {name: tls, port: 443, targetPort: 8443}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: alice, namespace: shop}
spec:
  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: gate}]
  rules: [{from: [{source: {serviceAccounts: [alice]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: [/denied, /grpc.Echo/Denied]}}]}]
"#;

fn up(place: &Place) -> (Mesh<'_>, Certificate) {
    let program = place.program(env!("CARGO_BIN_EXE_app"), "app");
    let certificate = Certificate::make(place);
    let path = |name: &str| place.path(name).display().to_string();
    let text =
        MANIFESTS.replace("PROGRAM", &program).replace("CERT", &path("cert.der")).replace("KEY", &path("key.der"));
    place.write("shop.yaml", &text);
    let mesh = Mesh::up(place, &["-f", "shop.yaml", "--waypoint-admin"]);
    mesh.wait_for("is ready");
    (mesh, certificate)
}

#[test]
fn http1_in_all_its_forms() {
    each_user(|place| {
        let (mesh, _) = up(place);
        for port in [80, 83] {
            let web = mesh.forward(ALICE, &format!("shop/web:{port}"));
            old_clients(&web);
            connections_that_stay(&web);
            bodies_with_trailers(&web);
            a_word_before_the_body(&web);
        }
    });
}

/// HTTP/1.0: closed after the answer unless it is asked otherwise, and without chunks.
fn old_clients(web: &Forward) {
    let answer = web.exchange("GET /one HTTP/1.0\r\nhost: web\r\n\r\nGET /two HTTP/1.0\r\nhost: web\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.matches("HTTP/1.0 ").count() == 1, "{answer}");
    assert!(answer.contains("\"/one\"") && !answer.contains("transfer-encoding"), "{answer}");
    let mut stream = web.connect();
    for target in ["/one", "/two"] {
        send(&mut stream, format!("GET {target} HTTP/1.0\r\nhost: web\r\nconnection: keep-alive\r\n\r\n"));
        let answer = answer_to(&mut stream, "GET");
        assert_eq!((answer.status, answer.seen()["seen"]["target"].as_str()), (200, Some(target)), "{answer:?}");
    }
    let denied = web.exchange("GET /denied HTTP/1.0\r\nhost: web\r\n\r\n");
    assert!(denied.starts_with("HTTP/1.0 403 ") && denied.ends_with("\r\n\r\nRBAC: access denied"), "{denied}");
}

/// One after the other, then twenty ahead with one among them that is denied.
fn connections_that_stay(web: &Forward) {
    let mut stream = web.connect();
    for target in ["/a", "/b?c=%20d"] {
        send(&mut stream, format!("GET {target} HTTP/1.1\r\nhost: web\r\n\r\n"));
        assert_eq!(answer_to(&mut stream, "GET").seen()["seen"]["target"], target);
    }
    let target = |index| if index == 7 { "/denied".to_owned() } else { format!("/{index}") };
    let all: String = (0..20).map(|index| format!("GET {} HTTP/1.1\r\nhost: web\r\n\r\n", target(index))).collect();
    send(&mut stream, all);
    for index in 0..20 {
        let answer = answer_to(&mut stream, "GET");
        if index == 7 {
            assert_eq!((answer.status, answer.body.as_str()), (403, "RBAC: access denied"));
        } else {
            assert_eq!(answer.seen()["seen"]["target"], target(index));
        }
    }
    send(&mut stream, "HEAD /last HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    let answer = answer_to(&mut stream, "HEAD");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer:?}");
    assert_eq!(rest(&mut stream), "");
}

fn bodies_with_trailers(web: &Forward) {
    let mut stream = web.connect();
    send(
        &mut stream,
        "POST /trailers HTTP/1.1\r\nhost: web\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nx-sum: 42\r\n\r\n",
    );
    let answer = answer_to(&mut stream, "POST");
    assert_eq!((answer.status, answer.body.as_str()), (200, "5 bytes, 42"), "{answer:?}");
    assert_eq!(answer.trailers, "x-sum: 42\r\n");
}

fn a_word_before_the_body(web: &Forward) {
    let head =
        |path: &str| format!("POST {path} HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    let mut stream = web.connect();
    send(&mut stream, head("/told"));
    assert_eq!(answer_to(&mut stream, "POST").status, 100);
    send(&mut stream, "hi");
    assert_eq!(answer_to(&mut stream, "POST").seen()["seen"]["body"], "hi");
    // Who is denied isn't asked for its body.
    let denied = web.exchange(head("/denied"));
    assert!(denied.starts_with("HTTP/1.1 403 ") && denied.matches("HTTP/1.").count() == 1, "{denied}");
}

#[test]
fn http2_and_grpc_and_what_the_application_is_spoken_to_in() {
    each_user(|place| {
        let (mesh, _) = up(place);
        // What its port says of the application, whatever the client speaks; where it says nothing, the client's own.
        let ports = [
            (80, "HTTP/1.1", "HTTP/1.1"),
            (81, "HTTP/2.0", "HTTP/2.0"),
            (82, "HTTP/2.0", "HTTP/2.0"),
            (83, "HTTP/1.1", "HTTP/2.0"),
            (84, "HTTP/1.1", "HTTP/1.1"),
        ];
        for (port, from_http1, from_http2) in ports {
            let web = mesh.forward(ALICE, &format!("shop/web:{port}"));
            let answer = web.ask_with("POST /x?y=1", "one");
            assert_eq!(
                (answer.status, answer.seen()["version"].as_str()),
                (200, Some(from_http1)),
                "{port} {answer:?}"
            );
            assert_eq!(answer.seen()["seen"]["body"], "one");
            let mut client = Client::connect(web.address);
            let answer = client.ask("POST", "/x?y=1", &[], b"two");
            assert_eq!((answer.status.as_u16(), answer.seen()["version"].as_str()), (200, Some(from_http2)), "{port}");
            assert_eq!(
                (&answer.seen()["seen"]["body"], &answer.seen()["seen"]["target"]),
                (&"two".into(), &"/x?y=1".into())
            );
            let denied = client.ask("GET", "/denied", &[], b"");
            assert_eq!((denied.status.as_u16(), &denied.body[..]), (403, &b"RBAC: access denied"[..]), "{port}");
            if from_http2 == "HTTP/2.0" {
                calls(&mut client);
            }
            // A client of gRPC gets an answer of gRPC, over HTTP/1.1 too.
            let call = web.ask_with("POST /grpc.Echo/Denied\ncontent-type: application/grpc", "x");
            assert_eq!((call.status, call.header("grpc-status")), (200, Some("7")), "{port} {call:?}");
            assert_eq!((call.header("grpc-message"), call.body.as_str()), (Some("RBAC: access denied"), ""));
        }
        let bob = mesh.forward(BOB, "shop/web:82");
        denied(&Client::connect(bob.address).call("/grpc.Echo/Unary", &[], b"hello"));
    });
}

fn calls(client: &mut Client) {
    let answer = client.call("/grpc.Echo/Unary", &[("grpc-timeout", "5S")], b"hello");
    assert_eq!((answer.status.as_u16(), &answer.body[5..]), (200, &b"hello"[..]), "{answer:?}");
    let trailer = |name: &str| answer.trailers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!((trailer("grpc-status"), trailer("x-tail")), (Some("0"), Some("last")), "{answer:?}");
    // Both sides speak in turn, so nothing waits for an end.
    let large = vec![b'z'; 100_000];
    let trailers = client.converse("/grpc.Echo/Both", &[b"one", &large, b"", b"three"]);
    assert_eq!(trailers.get("grpc-status").map(|status| status.as_bytes()), Some(&b"0"[..]));
    let failed = client.call("/grpc.Echo/Fail", &[], b"hello");
    assert_eq!(failed.trailers.get("grpc-status").map(|status| status.as_bytes()), Some(&b"5"[..]), "{failed:?}");
    denied(&client.call("/grpc.Echo/Denied", &[], b"hello"));
}

/// An answer of gRPC, not one of HTTP.
fn denied(answer: &http2::Answer) {
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    assert_eq!((answer.text("grpc-status"), answer.text("grpc-message")), (Some("7"), Some("RBAC: access denied")));
    assert_eq!(answer.text("content-type"), Some("application/grpc"));
    assert!(answer.body.is_empty(), "{answer:?}");
}

#[test]
fn tcp_and_tls_pass_unread_and_are_judged_by_who_asks() {
    each_user(|place| {
        let (mesh, certificate) = up(place);
        let (raw, secret) = (mesh.forward(ALICE, "shop/raw:7000"), mesh.forward(ALICE, "shop/raw:443"));
        // Not even what looks like HTTP is read: a policy about paths has nothing to say, and nothing is added.
        let answer = raw.ask("GET /denied");
        assert_eq!((answer.status, answer.seen()["seen"]["target"].as_str()), (200, Some("/denied")), "{answer:?}");
        let names: Vec<_> = answer.seen()["seen"]["headers"].as_array().expect("headers").clone();
        assert_eq!(names.len(), 2, "host and connection: {names:?}");
        // What the application makes of it is its own affair. The client's end arrives, the answer too.
        let mut stream = raw.connect();
        send(&mut stream, "GET /half HTTP/1.0\r\n\r\n");
        stream.shutdown(Shutdown::Write).expect("half closed");
        assert!(rest(&mut stream).contains("\"/half\""));

        for name in ["one.example", "other.test"] {
            let (greeting, back) = certificate.greet(secret.connect(), name).expect("a greeting");
            assert_eq!((greeting, back), (format!("app as {name}\n"), "again are you there?\n".to_owned()));
        }

        let bob = mesh.forward(BOB, "shop/raw:7000");
        assert_eq!(bob.exchange("GET / HTTP/1.1\r\nhost: web\r\n\r\n"), "", "closed without a word");
        let bob = mesh.forward(BOB, "shop/raw:443");
        let greeted = certificate.greet(bob.connect(), "one.example");
        assert!(greeted.as_ref().is_ok_and(|(greeting, _)| greeting.is_empty()) || greeted.is_err(), "{greeted:?}");
    });
}
