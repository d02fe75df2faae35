//! HTTP/1.1 clients that end their side after a request, as `nc -N` does, and wait for the answer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_xds::workload::AppProtocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};

use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, allow_all, soon},
};

/// An application that answers each request in two parts, each when it is told to.
async fn hesitant() -> (SocketAddr, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        loop {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                request.push(byte);
            }
            for part in ["HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none", "two"] {
                told.notified().await;
                stream.write_all(part.as_bytes()).await.expect("written");
            }
        }
    });
    (address, go)
}

async fn start(app: SocketAddr) -> Mesh {
    let mut shape = Shape::of(app);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Http11;
    Mesh::start(shape).await
}

/// Sends this and the end, and gives all that comes back.
async fn ask(mesh: &Mesh, request: &str) -> String {
    let mut stream = mesh.tunnel("any").await;
    soon(stream.write_all(request.as_bytes())).await.expect("written");
    soon(stream.shutdown()).await.expect("ended");
    let mut answers = Vec::new();
    let _ = soon(stream.read_to_end(&mut answers)).await;
    String::from_utf8(answers).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_comes_whole_however_long_it_takes() {
    let (app, go) = hesitant().await;
    let mesh = start(app).await;
    let mut stream = mesh.tunnel("any").await;
    soon(stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")).await.expect("written");
    soon(stream.shutdown()).await.expect("ended");
    // The end has long been seen when the answer comes, and again in the middle of it.
    let mut answer = Vec::new();
    for part in [&b"one"[..], b"two"] {
        tokio::time::sleep(Duration::from_millis(200)).await;
        go.notify_one();
        while !answer.ends_with(part) {
            let read = soon(stream.read_buf(&mut answer)).await.expect("readable");
            assert_ne!(read, 0, "{:?}", String::from_utf8_lossy(&answer));
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let end = soon(stream.read(&mut [0; 1])).await.expect("an orderly end");
    assert_eq!(end, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_before_the_end_has_its_answer() {
    let app = Raw::start().await;
    let mesh = start(app.address).await;
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let cases = [
        (get.to_owned(), 1),
        (post.to_owned(), 1),
        (chunked.to_owned(), 1),
        (get.repeat(3), 3),
        (format!("{get}{post}{chunked}"), 3),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n".to_owned(), 1),
    ];
    for (requests, expected) in cases {
        let answers = ask(&mesh, &requests).await;
        assert_eq!(answers.matches(" 200 OK\r\n").count(), expected, "{requests:?} {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_is_no_request() {
    let app = Raw::start().await;
    let mesh = start(app.address).await;
    for half in [
        "GET / HTTP/1.1\r\nhost: a\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nab",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ] {
        let answers = ask(&mesh, half).await;
        assert!(!answers.contains(" 200 "), "{half:?} {answers:?}");
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
    // Nothing at all is answered with nothing.
    assert_eq!(ask(&mesh, "").await, "");
}
