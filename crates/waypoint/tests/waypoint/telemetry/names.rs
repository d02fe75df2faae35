//! The server name of a TLS handshake that passes through, for policies.

use ambit_xds::workload::AppProtocol;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend,
    mesh::{Mesh, Shape, policy, soon},
    routes::streams::hello,
};

/// Sends these bytes in two pieces; true if they come back.
async fn passes(mesh: &Mesh, bytes: &[u8]) -> bool {
    let mut tunnel = mesh.tunnel("any").await;
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    for part in [first, rest] {
        if soon(tunnel.write_all(part)).await.is_err() || soon(tunnel.flush()).await.is_err() {
            return false;
        }
    }
    let mut back = vec![0; bytes.len()];
    soon(tunnel.read_exact(&mut back)).await.is_ok_and(|_| back == bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_judge_the_server_name_of_a_handshake() {
    for protocol in [AppProtocol::Tls, AppProtocol::Tcp, AppProtocol::Unknown] {
        let shape = Shape { protocol, policies: Vec::new(), ..Shape::of(backend::tcp(false).await) };
        let mesh = Mesh::start(shape).await;
        let rule = |action: &str, field: &str, value: &str| {
            policy(json!({"action": action, "rules": [{"when": [{"key": "connection.sni", field: [value]}]}]}))
        };
        let (named, other, none) =
            (hello(Some("db.example.com")), hello(Some("evil.example.com")), b"\x01plain".to_vec());
        let cases = [
            (rule("ALLOW", "values", "db.example.com"), [true, false, false]),
            (rule("ALLOW", "values", "*.example.com"), [true, true, false]),
            (rule("DENY", "values", "evil.example.com"), [true, false, true]),
            (rule("DENY", "notValues", "db.example.com"), [true, false, false]),
        ];
        for (policy, wanted) in cases {
            mesh.policies(std::slice::from_ref(&policy));
            for (bytes, wanted) in [&named, &other, &none].into_iter().zip(wanted) {
                assert_eq!(passes(&mesh, bytes).await, wanted, "{protocol:?} {policy} {}", bytes.len());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_doesnt_come_is_denied_what_a_name_would_allow() {
    let shape = Shape { protocol: AppProtocol::Tls, ..Shape::of(backend::tcp(false).await) };
    let mesh = Mesh::start(shape).await;
    mesh.policies(&[policy(
        json!({"action": "DENY", "rules": [{"when": [{"key": "connection.sni", "values": ["x.example.com"]}]}]}),
    )]);
    let mut tunnel = mesh.tunnel("any").await;
    // The beginning of a handshake, and no more of it until the detection's time is over.
    soon(tunnel.write_all(&hello(Some("db.example.com"))[..20])).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    assert!(soon(tunnel.read_u8()).await.is_err(), "what isn't known counts as whatever denies");
}
