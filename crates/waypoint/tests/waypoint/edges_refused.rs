//! HTTP/1 that could be read in two ways, as raw bytes: refused, and counted.

use ambit_policy::Verdict;
use ambit_waypoint::Refusal;
use tokio::io::AsyncWriteExt;

use crate::{
    backend::Raw,
    edges_http1::{count, counted, open, rest, send},
    mesh::{exchange, response, status},
};

/// Request heads (bodies too) of which none may reach the application whole, and none may be followed by another request.
const REFUSED: &[(&str, u16, Refusal)] = &[
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400, Refusal::RepeatedLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\n", 400, Refusal::RepeatedLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\n", 400, Refusal::InvalidLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n", 400, Refusal::InvalidLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n", 400, Refusal::InvalidLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5x\r\n\r\n", 400, Refusal::InvalidLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n", 400, Refusal::InvalidLength),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n", 400, Refusal::InvalidLength),
    (
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        Refusal::LengthAndEncoding,
    ),
    (
        "POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
        Refusal::LengthAndEncoding,
    ),
    (
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: content-length\r\ntransfer-encoding: x\r\n\r\n",
        400,
        Refusal::LengthAndEncoding,
    ),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400, Refusal::UnknownEncoding),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, Refusal::UnknownEncoding),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n", 400, Refusal::UnknownEncoding),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n", 400, Refusal::UnknownEncoding),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\x0bchunked\r\n\r\n", 400, Refusal::UnknownEncoding),
    (
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        Refusal::RepeatedEncoding,
    ),
    (
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n",
        400,
        Refusal::RepeatedEncoding,
    ),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, Refusal::EncodingInHttp10),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: y\nz: 1\r\n\r\n", 400, Refusal::BareLineFeed),
    ("GET / HTTP/1.1\r\nhost: a\r\n\n", 400, Refusal::BareLineFeed),
    ("GET / HTTP/1.1\nhost: a\n\n", 400, Refusal::BareLineFeed),
    ("\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::BareLineFeed),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: y\rz: 1\r\n\r\n", 400, Refusal::BareCarriageReturn),
    ("GET /\r HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::BareCarriageReturn),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n", 400, Refusal::FoldedLine),
    ("GET / HTTP/1.1\r\n host: a\r\n\r\n", 400, Refusal::FoldedLine),
    ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400, Refusal::SpaceInName),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n", 400, Refusal::SpaceInName),
    ("GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n", 400, Refusal::SpaceInName),
    ("GET / HTTP/1.1\r\nhost: a\r\nnocolon\r\n\r\n", 400, Refusal::SpaceInName),
    ("GET / HTTP/1.1\r\n\r\n", 400, Refusal::NoHost),
    ("GET / HTTP/1.0\r\n\r\n", 400, Refusal::NoHost),
    ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400, Refusal::RepeatedHost),
    ("GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n", 400, Refusal::RepeatedHost),
    ("GET / HTTP/1.1\r\nhost: a, b\r\n\r\n", 400, Refusal::MalformedHost),
    ("GET / HTTP/1.1\r\nhost:\r\n\r\n", 400, Refusal::MalformedHost),
    ("GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::ConflictingHost),
    ("GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", 400, Refusal::UserInformation),
    ("GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::ForeignScheme),
    ("GET x HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::ConflictingHost),
    ("GET a HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedTarget),
    ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 403, Refusal::Connect),
    ("GET / HTTP/1.1\r\nhost: a\r\nx\0y: z\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / HTTP/1.1\r\nhost: a\r\nx(y): z\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / HTTP/1.1\r\nhost: a\r\n: z\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: y\0z\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: y\x7f\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET /\t HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / x HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("G(T / HTTP/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / HTTP/1.2\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET / http/1.1\r\nhost: a\r\n\r\n", 400, Refusal::MalformedHead),
    ("GET /\r\n\r\n", 400, Refusal::MalformedHead),
    ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400, Refusal::MalformedHead),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_two_readings_is_refused_and_counted() {
    let app = Raw::start().await;
    let mut mesh = open(app.address).await;
    for (bytes, expected, refusal) in REFUSED {
        let before = count(&mesh, *refusal);
        let mut stream = mesh.tunnel("any").await;
        // A client that sends on.
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        // Where one request ends and the next begins is clear to those that come after.
        let framed = *refusal as usize > Refusal::MalformedHead as usize;
        send(&mut stream, format!("{bytes}{}", if framed { "" } else { smuggled })).await;
        let answer = if framed { response(&mut stream, false).await.0 } else { rest(&mut stream).await };
        assert!(answer.starts_with("HTTP/1."), "an answer to {bytes:?}: {answer:?}");
        assert_eq!(status(&answer), *expected, "{bytes:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "one answer and no more to {bytes:?}: {answer:?}");
        counted(&mesh, *refusal, before + 1).await;
        assert_eq!(count(&mesh, *refusal), before + 1, "{bytes:?}");
        mesh.expect_record(Verdict::Deny, Some(*expected)).await;
    }
    assert_eq!(app.seen(), Vec::<String>::new());
    assert_eq!(app.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_come_one_by_one_are_refused_alike() {
    let app = Raw::start().await;
    let mesh = open(app.address).await;
    for (bytes, expected, refusal) in REFUSED.iter().step_by(5) {
        let before = count(&mesh, *refusal);
        let mut stream = mesh.tunnel("any").await;
        for byte in bytes.as_bytes() {
            // The waypoint may have ended it already.
            if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let (head, _) = response(&mut stream, false).await;
        assert_eq!(status(&head), *expected, "{bytes:?}");
        counted(&mesh, *refusal, before + 1).await;
    }
    assert_eq!(app.seen(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_have_two_readings_are_refused() {
    let app = Raw::start().await;
    let mesh = open(app.address).await;
    let cases = [
        ("10000000000000000\r\nx", Refusal::InvalidChunk),
        ("fffffffffffffffff\r\nx", Refusal::InvalidChunk),
        ("+1\r\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("-1\r\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("0x1\r\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        (" 1\r\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("1 \r\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("1\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("1\r\nx0\r\n\r\n", Refusal::InvalidChunk),
        ("1\r\nx\n0\r\n\r\n", Refusal::InvalidChunk),
        ("1;a\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("1;a\rb\r\nx\r\n0\r\n\r\n", Refusal::InvalidChunk),
        ("\r\n\r\n", Refusal::InvalidChunk),
        ("0\r\na: b\nc: d\r\n\r\n", Refusal::InvalidTrailer),
        ("0\r\n\n", Refusal::InvalidTrailer),
        ("0\r\n folded\r\n\r\n", Refusal::InvalidTrailer),
    ];
    for (body, refusal) in cases {
        let before = count(&mesh, refusal);
        let mut stream = mesh.tunnel("any").await;
        let head = "POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        send(&mut stream, format!("{head}{body}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answer = rest(&mut stream).await;
        assert_eq!(status(&answer), 400, "{body:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{body:?}: {answer:?}");
        counted(&mesh, refusal, before + 1).await;
    }
    assert_eq!(app.seen(), Vec::<String>::new(), "half a request is no request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_heads_are_refused_and_counted() {
    let app = Raw::start().await;
    let mesh = open(app.address).await;
    let many: String = (0..101).map(|i| format!("h{i}: 1\r\n")).collect();
    let cases = [
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431, Refusal::LargeHead),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nbig: {}\r\n\r\n", "x".repeat(70_000)), 431, Refusal::LargeHead),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(17_000)), 414, Refusal::LongTarget),
    ];
    for (request, expected, refusal) in cases {
        let before = count(&mesh, refusal);
        let mut stream = mesh.tunnel("any").await;
        assert_eq!(status(&exchange(&mut stream, &request).await.0), expected);
        counted(&mesh, refusal, before + 1).await;
    }
    assert_eq!(app.connections(), 0);
}
