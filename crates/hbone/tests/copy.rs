//! Two byte streams joined: TCP with TCP, and TCP with a tunnel.

mod support;

use std::{io::ErrorKind, time::Duration};

use ambit_hbone::{
    copy::{CopyError, HALF_CLOSE_IDLE_TIMEOUT, bidirectional},
    socket::reset_on_close,
};
use ambit_testing::TestMesh;
use support::{Client, quick, server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
    (near, listener.accept().await.expect("accepted").0)
}

/// An application on each side, with a copy between them.
async fn joined(idle: Duration) -> (TcpStream, TcpStream, JoinHandle<Result<(u64, u64), CopyError>>) {
    let ((left, mut a), (right, mut b)) = (pair().await, pair().await);
    let copy = tokio::spawn(async move { bidirectional(&mut a, &mut b, idle).await });
    (left, right, copy)
}

#[tokio::test]
async fn both_directions_run_to_their_ends() {
    let (mut left, mut right, copy) = joined(HALF_CLOSE_IDLE_TIMEOUT).await;
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let request = data.clone();
    let asking = tokio::spawn(async move {
        left.write_all(&request).await.expect("written");
        left.shutdown().await.expect("ended");
        let mut answer = Vec::new();
        left.read_to_end(&mut answer).await.expect("read");
        answer
    });
    let mut got = Vec::new();
    soon(right.read_to_end(&mut got)).await.expect("the end is passed on");
    assert!(got == data);
    // The other direction is still open, and as long as before.
    tokio::time::sleep(Duration::from_millis(100)).await;
    right.write_all(b"thanks").await.expect("written");
    right.shutdown().await.expect("ended");
    assert_eq!(soon(asking).await.expect("no panic"), b"thanks");
    assert_eq!(soon(copy).await.expect("no panic").expect("finished"), (3_000_000, 6));
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let (mut left, mut right, copy) = joined(HALF_CLOSE_IDLE_TIMEOUT).await;
    left.write_all(b"half").await.expect("written");
    let mut got = [0; 4];
    soon(right.read_exact(&mut got)).await.expect("read");
    reset_on_close(&left);
    drop(left);
    let error = soon(right.read_u8()).await.expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let broken = soon(copy).await.expect("no panic").expect_err("broken");
    assert_eq!((broken.a_to_b, broken.b_to_a, broken.error.kind()), (4, 0, ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_half_closed_connection_is_not_kept_for_ever() {
    let (mut left, mut right, copy) = joined(Duration::from_millis(300)).await;
    left.shutdown().await.expect("ended");
    // As long as bytes come, it is in use.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        right.write_all(b".").await.expect("written");
        soon(left.read_u8()).await.expect("read");
    }
    let broken = soon(copy).await.expect("no panic").expect_err("idle");
    assert_eq!((broken.b_to_a, broken.error.kind()), (5, ErrorKind::TimedOut));
    soon(left.read_u8()).await.expect_err("broken off");
}

#[tokio::test]
async fn an_open_connection_may_be_silent() {
    let (mut left, mut right, copy) = joined(Duration::from_millis(50)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    left.write_all(b"!").await.expect("written");
    assert_eq!(soon(right.read_u8()).await.expect("read"), b'!');
    assert!(!copy.is_finished());
}

#[tokio::test]
async fn a_tunnel_and_an_application_are_joined() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let (mut app, mut captured) = pair().await;
    let mut tunnel = client.open("x", server.addr, "count:1").await;
    let copy = tokio::spawn(async move { bidirectional(&mut captured, &mut tunnel, HALF_CLOSE_IDLE_TIMEOUT).await });
    app.write_all(&vec![7; 1 << 20]).await.expect("written");
    app.shutdown().await.expect("ended");
    let mut answer = String::new();
    soon(app.read_to_string(&mut answer)).await.expect("answered");
    assert_eq!(answer, "1048576");
    assert_eq!(soon(copy).await.expect("no panic").expect("finished"), (1 << 20, 7));
}

#[tokio::test]
async fn a_tunnel_reset_by_its_peer_resets_the_application() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let (mut app, mut captured) = pair().await;
    let mut tunnel = client.open("x", server.addr, "break:1").await;
    let copy = tokio::spawn(async move { bidirectional(&mut captured, &mut tunnel, HALF_CLOSE_IDLE_TIMEOUT).await });
    let mut got = Vec::new();
    let error = soon(app.read_to_end(&mut got)).await.expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    soon(copy).await.expect("no panic").expect_err("broken");
}
