//! Many at once, too slow, or too much.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use ambit_xds::workload::AppProtocol;

use crate::{
    backend::{self, Raw},
    mesh::{Mesh, PATIENCE, Pod, Shape, allow_all, exchange, soon, status},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn open(app: std::net::SocketAddr) -> Shape {
    let mut shape = Shape::of(app);
    shape.policies = vec![allow_all()];
    shape
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_at_once_all_get_their_answers_from_both_endpoints() {
    let (one, two) = (Raw::start().await, Raw::at("127.0.0.3", backend::After::KeepOpen).await);
    let mut shape = open(one.address);
    shape.pods.push(Pod { app: two.address, hbone: true });
    let mesh = Arc::new(Mesh::start(shape).await);
    let clients = (0..32).map(|_| {
        let mesh = Arc::clone(&mesh);
        tokio::spawn(async move {
            let mut stream = mesh.tunnel("any").await;
            for _ in 0..20 {
                assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no panic");
    }
    let (first, second) = (one.seen().len(), two.seen().len());
    assert_eq!(first + second, 32 * 20);
    assert!(first > 100 && second > 100, "{first} and {second}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_streams_over_http1_endpoints_keep_their_answers() {
    let app = Raw::start().await;
    let mut shape = open(app.address);
    shape.protocol = AppProtocol::Http11;
    let mesh = Mesh::start(shape).await;
    let tunnel = mesh.tunnel("any").await;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = soon(builder.handshake(TokioIo::new(tunnel))).await.expect("handshake");
    tokio::spawn(connection);
    for _ in 0..3 {
        let requests = (0..60).map(|index| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let request = Request::get(format!("http://a/{index}")).body(Full::<Bytes>::default());
                let response = soon(sender.send_request(request.expect("valid"))).await.expect("answered");
                assert_eq!(response.status(), 200);
                assert_eq!(soon(response.into_body().collect()).await.expect("whole").to_bytes(), "ok");
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.expect("no panic");
        }
    }
    assert_eq!(app.seen().len(), 180);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_stops_the_backend() {
    let (app, written) = backend::flood().await;
    let mesh = Mesh::start(open(app)).await;
    let mut stream = mesh.tunnel("any").await;
    soon(stream.write_all(GET.as_bytes())).await.expect("written");
    // Until nothing moves any more.
    let mut last = 0;
    let bound = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = written.load(Ordering::SeqCst);
            if now == last && now > 0 {
                return now;
            }
            last = now;
        }
    };
    let held = tokio::time::timeout(PATIENCE, bound).await.expect("it stops");
    assert!(held < 64 << 20, "{held} bytes are held on the way");
    soon(stream.read_exact(&mut vec![0; 32 << 20])).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_whole_request_ends_after_a_while() {
    let app = Raw::start().await;
    let mut shape = open(app.address);
    shape.limits.idle_timeout = Duration::from_millis(300);
    let mesh = Mesh::start(shape).await;
    let (mut idle, mut slow) = (mesh.tunnel("any").await, mesh.tunnel("any").await);
    assert_eq!(status(&exchange(&mut idle, GET).await.0), 200);
    soon(slow.write_all(b"GET / HTTP/1.1\r\nhost: ")).await.expect("written");
    for stream in [&mut idle, &mut slow] {
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
        assert!(!String::from_utf8_lossy(&rest).contains(" 200 "));
    }
    assert_eq!(app.seen().len(), 1);
}
