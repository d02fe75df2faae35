//! What operators see: real scrapes of a running waypoint, and the Gateway's own answers.

use std::{net::SocketAddr, time::Duration};

use ambit_waypoint::Exposure;
use ambit_xds::{
    WAYPOINT_TYPE,
    waypoint::{Bundle, Denial, GatewaySettings},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    backend::{self, Raw},
    mesh::{HOSTNAME, Mesh, NAMESPACE, Shape, allow_all, exchange, header, soon, status, traces_only},
    wire,
};

async fn operators(mesh: &Mesh, exposure: Exposure) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    mesh.waypoint.as_ref().expect("running").serve_operators(vec![listener], exposure, None);
    address
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("text");
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
}

/// Scrapes until each of these series (its name, and a label's value that tells it) has this count: what a client saw
/// end may be counted a moment later.
async fn scrape(address: SocketAddr, wanted: &[(&str, &str, u64)]) -> String {
    soon(async {
        loop {
            let text = get(address, "/stats/prometheus").await;
            let has = |(name, value, count): &(&str, &str, u64)| {
                let (start, label, end) = (format!("{name}{{"), format!("=\"{value}\""), format!(" {count}"));
                text.lines().any(|line| line.starts_with(&start) && line.contains(&label) && line.ends_with(&end))
            };
            if wanted.iter().all(has) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

fn configure(mesh: &Mesh, policies: &[Value], settings: GatewaySettings) {
    let bundle = Bundle { settings: Some(settings), ..wire::bundle(vec![wire::service(policies)]) };
    mesh.store.apply(&[wire::response(&bundle)]).expect("readable resources");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted_with_istios_labels_and_policies_with_their_rules() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let address = operators(&mesh, Exposure::Loopback).await;
    let mut otel = mesh.tunnel("otel-collector").await;
    for _ in 0..2 {
        let request = "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(status(&exchange(&mut otel, request).await.0), 200);
    }
    let (head, _) = exchange(&mut otel, "GET /secret HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!(status(&head), 403);

    let text =
        scrape(address, &[("istio_response_bytes_count", "403", 1), ("istio_response_bytes_count", "200", 2)]).await;
    let allowed = format!(
        "istio_requests_total{{reporter=\"waypoint\",source_workload=\"client\",source_canonical_service=\"client\",\
         source_canonical_revision=\"latest\",source_workload_namespace=\"{NAMESPACE}\",\
         source_principal=\"spiffe://cluster.local/ns/{NAMESPACE}/sa/otel-collector\",source_app=\"client\",\
         source_version=\"latest\",source_cluster=\"Kubernetes\",destination_workload=\"mlflow-0\",\
         destination_workload_namespace=\"{NAMESPACE}\",\
         destination_principal=\"spiffe://cluster.local/ns/{NAMESPACE}/sa/mlflow\",destination_app=\"mlflow-0\",\
         destination_version=\"latest\",destination_service=\"{HOSTNAME}\",destination_canonical_service=\"mlflow-0\",\
         destination_canonical_revision=\"latest\",destination_service_name=\"mlflow\",\
         destination_service_namespace=\"{NAMESPACE}\",destination_cluster=\"Kubernetes\",request_protocol=\"http\",\
         response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\"}} 2"
    );
    // What the control plane doesn't say of a workload is `unknown`; this test's says little.
    let known = |line: &str| -> Vec<(String, String)> {
        let labels = line.split_once('{').expect("labels").1.rsplit_once('}').expect("labels").0;
        let pairs = labels.split("\",").map(|pair| pair.split_once("=\"").expect("a pair"));
        pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect()
    };
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{") && line.contains("=\"200\""));
    let line = line.unwrap_or_else(|| panic!("no allowed request in {text}"));
    let (found, expected) = (known(line), known(&allowed));
    let names = |pairs: &[(String, String)]| pairs.iter().map(|pair| pair.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "labels in Istio's order");
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found == expected || found.1 == "unknown", "{found:?} should be {expected:?}");
    }
    for (name, value) in [
        ("reporter", "waypoint"),
        ("source_workload_namespace", NAMESPACE),
        ("source_principal", "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector"),
        ("destination_principal", "spiffe://cluster.local/ns/kagenti-system/sa/mlflow"),
        ("destination_service", HOSTNAME),
        ("destination_service_name", "mlflow"),
        ("request_protocol", "http"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ] {
        assert!(found.contains(&(name.to_owned(), value.to_owned())), "{name}={value} in {line}");
    }
    assert!(line.ends_with(" 2"), "{line}");
    let denied = text.lines().find(|line| line.starts_with("istio_requests_total{") && line.contains("=\"403\""));
    let denied = denied.expect("denied requests are counted, too");
    assert!(denied.contains("destination_workload=\"unknown\"") && denied.ends_with(" 1"), "{denied}");
    for name in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        let count = text.lines().find(|line| line.starts_with(&format!("{name}_count{{")) && line.contains("=\"200\""));
        assert!(count.is_some_and(|line| line.ends_with(" 2")), "{name} in {text}");
    }
    let sum = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}_sum{{")) && line.contains("=\"200\""));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).expect("a sum")
    };
    assert_eq!((sum("istio_request_bytes"), sum("istio_response_bytes")), (6.0, 4.0), "2 x `abc`, 2 x `ok`");
    let rule = format!("ambit_policy_decisions_total{{policy=\"{NAMESPACE}/mlflow\",rule=\"0\",verdict=\"allow\"}} 2");
    assert!(text.contains(&rule), "{text}");
    assert!(text.contains("ambit_policy_decisions_total{policy=\"none\",rule=\"none\",verdict=\"deny\"} 1"), "{text}");
    let last = format!(
        "ambit_policy_last_hit_timestamp_seconds{{policy=\"{NAMESPACE}/mlflow\",rule=\"0\",verdict=\"allow\"}} "
    );
    let last = text.lines().find_map(|line| line.strip_prefix(&last)).expect("a last hit");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(now.abs_diff(last.parse().expect("seconds")) < 120, "{last} is about {now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_connections_and_their_bytes_are_counted() {
    let app = backend::tcp(false).await;
    let mesh = Mesh::start(Shape { policies: vec![allow_all()], ..Shape::of(app) }).await;
    let address = operators(&mesh, Exposure::Network).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let (sent, mut echoed) = ([0_u8, 1, 2, 3, 4, 5, 6], [0_u8; 7]);
    soon(tunnel.write_all(&sent)).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    soon(tunnel.read_exact(&mut echoed)).await.expect("echoed");
    drop(tunnel);
    let text = scrape(address, &[("istio_tcp_connections_closed_total", "tcp", 1)]).await;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_default();
        assert!(line.contains("request_protocol=\"tcp\"") && !line.contains("response_code"), "{name}: {line}");
        line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok())
    };
    assert_eq!(value("istio_tcp_connections_opened_total"), Some(1));
    assert_eq!(value("istio_tcp_connections_closed_total"), Some(1));
    assert_eq!(value("istio_tcp_received_bytes_total"), Some(7));
    assert!(value("istio_tcp_sent_bytes_total") >= Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_shows_readiness_and_configuration_and_keeps_web_pages_and_the_network_out() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let address = operators(&mesh, Exposure::Loopback).await;
    // The waypoint asks for its certificate when it starts; until it has it, it isn't ready.
    soon(async {
        loop {
            let answer = get(address, "/healthz/ready").await;
            if answer.starts_with("HTTP/1.1 200") {
                break;
            }
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no certificate yet\n"), "{answer}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let dump = get(address, "/config_dump").await;
    let dump: Value = serde_json::from_str(dump.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    let service = &dump["bundle"]["services"][0];
    assert_eq!(service["hostname"], HOSTNAME);
    assert_eq!(service["policies"][0]["spec"]["rules"][0]["to"][0]["operation"]["paths"][0], "/v1/traces", "{dump}");
    assert_eq!(dump["bundle"]["closed"], false);
    for bad in ["host: evil.example\r\n", "host: localhost\r\norigin: http://evil.example\r\n"] {
        for path in ["/config_dump", "/stats/prometheus", "/debug/decisions"] {
            let answer = ask(address, &format!("GET {path} HTTP/1.1\r\n{bad}connection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{path} {bad}: {answer}");
        }
    }
    let post = "POST /config_dump HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
    let outside = operators(&mesh, Exposure::Network).await;
    for (path, answer) in
        [("/healthz/ready", 200), ("/stats/prometheus", 200), ("/config_dump", 404), ("/debug/decisions", 404)]
    {
        assert!(get(outside, path).await.starts_with(&format!("HTTP/1.1 {answer}")), "{path}");
    }
    mesh.apply(WAYPOINT_TYPE, Vec::new(), &[&format!("{NAMESPACE}/waypoint")]);
    assert!(get(address, "/healthz/ready").await.starts_with("HTTP/1.1 503"), "without configuration");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_streamed_as_they_are_made() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let address = operators(&mesh, Exposure::Loopback).await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"GET /debug/decisions HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    let mut otel = mesh.tunnel("otel-collector").await;
    soon(async {
        while !seen.contains("\r\n\r\n") {
            let read = stream.read(&mut buffer).await.expect("read");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    })
    .await;
    let (head, _) = exchange(&mut otel, "GET /watched HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!(status(&head), 403);
    soon(async {
        while !seen.contains("\"path\":\"/watched\"") {
            let read = stream.read(&mut buffer).await.expect("read");
            assert!(read > 0, "the stream ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    })
    .await;
    let line = seen.lines().find(|line| line.contains("/watched")).expect("a line");
    let record: Value = serde_json::from_str(line).expect("a record");
    assert_eq!((record["verdict"].as_str(), record["status"].as_u64()), (Some("deny"), Some(403)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_words_its_denials_and_says_who_asks() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let denial = Denial {
        status: 404,
        content_type: "application/json".to_owned(),
        message: "{\"error\":\"100 % nein\"}".to_owned(),
    };
    configure(&mesh, &[traces_only()], GatewaySettings { denial: Some(denial), client_identity: true, tracing: None });
    let mut otel = mesh.tunnel("otel-collector").await;
    let (head, body) = exchange(&mut otel, "GET /x HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!((status(&head), header(&head, "content-type")), (404, Some("application/json")));
    assert_eq!(String::from_utf8_lossy(&body), "{\"error\":\"100 % nein\"}");
    let (head, body) = exchange(&mut otel, "HEAD /x HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!((status(&head), header(&head, "content-length"), body.len()), (404, Some("22"), 0), "{head}");
    let grpc = "POST /x HTTP/1.1\r\nhost: mlflow\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let (head, _) = exchange(&mut otel, grpc).await;
    assert_eq!((status(&head), header(&head, "grpc-status")), (200, Some("7")));
    assert_eq!(header(&head, "grpc-message"), Some("{\"error\":\"100 %25 nein\"}"));

    let request = "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\nx-forwarded-client-cert: URI=spiffe://forged\r\n\
                   traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(status(&exchange(&mut otel, request).await.0), 200);
    let seen = app.seen().join("\n");
    let wanted = format!(
        "x-forwarded-client-cert: By=spiffe://cluster.local/ns/{NAMESPACE}/sa/waypoint;\
         URI=spiffe://cluster.local/ns/{NAMESPACE}/sa/otel-collector"
    );
    assert!(seen.contains(&wanted) && !seen.contains("forged"), "{seen}");
    assert!(seen.contains("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), "{seen}");

    configure(&mesh, &[traces_only()], GatewaySettings::default());
    let (head, body) = exchange(&mut otel, "GET /x HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!((status(&head), body.as_slice()), (403, &b"RBAC: access denied"[..]));
    assert_eq!(status(&exchange(&mut otel, request).await.0), 200);
    let last = app.seen().pop().expect("a request");
    assert!(!last.contains("x-forwarded-client-cert"), "{last}");
}
