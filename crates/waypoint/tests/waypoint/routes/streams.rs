//! TCPRoute and TLSRoute.

use std::{net::SocketAddr, sync::Arc};

use ambit_policy::Verdict;
use ambit_xds::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Backend, kind_route, mesh_for, route};
use crate::mesh::{Mesh, NAMESPACE, soon};

/// An application that says its name and sends back every byte; `first` of its own accord.
async fn named(name: &'static str, first: bool) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if !first {
                    let mut byte = [0; 1];
                    let _ = stream.peek(&mut byte).await;
                }
                if stream.write_all(name.as_bytes()).await.is_ok() {
                    crate::backend::echo(stream).await;
                }
            });
        }
    });
    address
}

fn backend(name: &'static str, last: u8, app: SocketAddr) -> Backend<'static> {
    let (protocol, waypoint) = (AppProtocol::Tcp, None);
    Backend { namespace: NAMESPACE, name, vip: [10, 96, 1, last], port: 80, protocol, app, waypoint }
}

/// The first byte that comes back after these are sent.
async fn answer(mesh: &Mesh, bytes: &[u8]) -> Option<char> {
    let mut stream = mesh.tunnel("any").await;
    if !bytes.is_empty() {
        // A connection that is refused may be gone by now.
        let _ = soon(stream.write_all(bytes)).await;
    }
    let mut first = [0; 1];
    soon(stream.read_exact(&mut first)).await.ok()?;
    Some(char::from(first[0]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_connections_are_shared_among_backends_by_weight() {
    let (own, a, b) = (named("o", false).await, named("a", false).await, named("b", false).await);
    for protocol in [AppProtocol::Tcp, AppProtocol::Unknown] {
        let mut mesh = mesh_for(own, protocol, &[backend("a", 1, a), backend("b", 2, b)]).await;
        let tcp = |rules: &str| kind_route("TCPRoute", "v1alpha2", NAMESPACE, "t", &format!("rules: [{rules}]"));
        assert_eq!(answer(&mesh, b"\x00x").await, Some('o'), "without routes");
        mesh.expect_record(Verdict::Allow, None).await;
        route(&mesh, &tcp("{backendRefs: [{name: a, port: 80, weight: 1}, {name: b, port: 80, weight: 1}]}"));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.extend(answer(&mesh, b"\x00x").await);
            mesh.expect_record(Verdict::Allow, None).await;
        }
        assert_eq!(seen, ['a', 'b'].into());
        for nowhere in ["{backendRefs: [{name: gone, port: 80}]}", "{backendRefs: [{name: a, port: 80, weight: 0}]}"] {
            route(&mesh, &tcp(nowhere));
            assert_eq!(answer(&mesh, b"\x00x").await, None, "{nowhere}");
            let record = mesh.expect_record(Verdict::Allow, None).await;
            assert!(record.reason.contains("TCPRoute `kagenti-system/t`"), "{}", record.reason);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_may_be_behind_a_tcp_route() {
    let (own, a) = (named("o", true).await, named("a", true).await);
    let mesh = mesh_for(own, AppProtocol::Unknown, &[backend("a", 1, a)]).await;
    route(&mesh, &kind_route("TCPRoute", "v1alpha2", NAMESPACE, "t", "rules: [{backendRefs: [{name: a, port: 80}]}]"));
    assert_eq!(answer(&mesh, b"").await, Some('a'));
}

/// A ClientHello that asks for this server.
pub fn hello(name: Option<&str>) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    let server = name.unwrap_or("unnamed.example").to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).expect("client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("in memory");
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_connections_go_by_the_servers_name() {
    let (own, a, b) = (named("o", false).await, named("a", false).await, named("b", false).await);
    for protocol in [AppProtocol::Tls, AppProtocol::Unknown] {
        let mut mesh = mesh_for(own, protocol, &[backend("a", 1, a), backend("b", 2, b)]).await;
        let tls = |name: &str, hosts: &str, to: &str| {
            let rest = format!("hostnames: [{hosts}]\nrules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]");
            kind_route("TLSRoute", "v1", NAMESPACE, name, &rest)
        };
        let routes = format!("{}{}", tls("one", "one.example", "a"), tls("wild", "'*.example', '*.far.example'", "b"));
        route(&mesh, &routes);
        for (name, wanted) in [
            (Some("one.example"), Some('a')),
            (Some("ONE.example"), Some('a')),
            (Some("two.example"), Some('b')),
            (Some("x.one.example"), Some('b')),
            (Some("example"), None),
            (Some("other.test"), None),
            (None, None),
        ] {
            assert_eq!(answer(&mesh, &hello(name)).await, wanted, "{name:?} {protocol:?}");
            let record = mesh.expect_record(Verdict::Allow, None).await;
            assert_eq!(record.reason.contains("no TLSRoute"), wanted.is_none(), "{}", record.reason);
        }
        // What isn't TLS has no name; a hello in pieces is put together.
        assert_eq!(answer(&mesh, b"\x00plain").await, None);
        let whole = hello(Some("one.example"));
        let mut stream = mesh.tunnel("any").await;
        for piece in whole.chunks(200) {
            soon(stream.write_all(piece)).await.expect("written");
            soon(stream.flush()).await.expect("flushed");
        }
        let mut first = [0; 1];
        soon(stream.read_exact(&mut first)).await.expect("answered");
        assert_eq!(first, [b'a']);
        let mut back = vec![0; whole.len()];
        soon(stream.read_exact(&mut back)).await.expect("echoed");
        assert_eq!(back, whole, "the backend gets the hello as it was");
    }
}
