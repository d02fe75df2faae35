//! What can be read in two ways, or is only meant to cost work.

use std::{
    thread,
    time::{Duration, Instant},
};

use ambit_tests::{
    Forward, Mesh, each_user,
    http1::{answer_to, send},
    http2::{self, CONTINUATION, GOAWAY, HEADERS, RST_STREAM},
};

use crate::{ALICE, up};

#[test]
fn what_can_be_read_in_two_ways_is_refused_and_counted_by_reason() {
    each_user(|place| {
        let (mesh, _) = up(place);
        let web = mesh.forward(ALICE, "shop/web:80");
        smuggling_over_http1(&mesh, &web);
        abuse_of_http2(&mesh, &mesh.forward(ALICE, "shop/web:81"));
        let seen = web.ask("GET /seen").body;
        assert!(!seen.contains("smuggled") && !seen.contains("/refused"), "it has reached the application: {seen}");
    });
}

fn smuggling_over_http1(mesh: &Mesh<'_>, web: &Forward) {
    const NEXT: &str = "GET /smuggled HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    let post = |lines: &str| format!("POST /refused HTTP/1.1\r\nhost: web\r\n{lines}\r\n");
    let get = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\n{lines}\r\n");
    let chunked = |body: &str| post(&format!("transfer-encoding: chunked\r\n\r\n{body}"));
    // Where the request ends isn't sure, so the connection ends.
    let unframed = [
        ("repeated_length", post("content-length: 5\r\ncontent-length: 6\r\n")),
        ("invalid_length", post("content-length: +5\r\n")),
        ("length_and_encoding", post("content-length: 5\r\ntransfer-encoding: chunked\r\n")),
        ("repeated_encoding", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n")),
        ("unknown_encoding", post("transfer-encoding: gzip, chunked\r\n")),
        ("encoding_in_http10", post("transfer-encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0")),
        ("invalid_chunk", chunked("0x1\r\nx\r\n0\r\n")),
        ("invalid_trailer", chunked("0\r\na: b\nc: d\r\n")),
        ("folded_line", post("x: y\r\n z\r\n")),
        ("space_in_name", post("x : y\r\n")),
        ("bare_lf", post("x: y\nz: 1\r\n")),
        ("bare_cr", post("x: y\rz: 1\r\n")),
        ("malformed_head", post("x: y\0z\r\n")),
        ("large_head", post(&"x: y\r\n".repeat(101))),
    ];
    for (reason, request) in unframed {
        let answer = web.exchange(format!("{request}{NEXT}"));
        let status = if reason == "large_head" { "431" } else { "400" };
        assert!(answer.starts_with("HTTP/1.") && answer[9..].starts_with(status), "{reason}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "one answer and no more, {reason}: {answer:?}");
        counted(mesh, reason, 1);
    }
    // Where it ends is sure; what it means isn't.
    let framed = [
        ("no_host", get("/refused", ""), 400),
        ("repeated_host", get("/refused", "host: web\r\nhost: other\r\n"), 400),
        ("malformed_host", get("/refused", "host: a, b\r\n"), 400),
        ("conflicting_host", get("http://other/refused", "host: web\r\n"), 400),
        ("user_information", get("/refused", "host: me@web\r\n"), 400),
        ("foreign_scheme", get("ftp://web/refused", "host: web\r\n"), 400),
        ("malformed_target", get("web", "host: web\r\n"), 400),
        ("repeated_authorization", get("/refused", "host: web\r\nauthorization: a\r\nauthorization: b\r\n"), 400),
        ("long_target", get(&format!("/refused{}", "x".repeat(17_000)), "host: web\r\n"), 414),
        ("connect", "CONNECT web:80 HTTP/1.1\r\nhost: web:80\r\n\r\n".to_owned(), 403),
    ];
    for (reason, request, status) in framed {
        let mut stream = web.connect();
        send(&mut stream, request);
        assert_eq!(answer_to(&mut stream, "GET").status, status, "{reason}");
        counted(mesh, reason, 1);
    }
}

fn abuse_of_http2(mesh: &Mesh<'_>, web: &Forward) {
    const PROTOCOL_ERROR: u32 = 1;
    const ENHANCE_YOUR_CALM: u32 = 11;
    let resets = |index: u32| {
        [http2::get(2 * index + 1, &[]), http2::frame(RST_STREAM, 0, 2 * index + 1, &[0, 0, 0, 8])].concat()
    };
    let endless = http2::frame(HEADERS, 0, 1, &http2::block(&[(":method", "GET")]));
    let piece = http2::frame(CONTINUATION, 0, 1, &http2::block(&[("x", "y".repeat(100).as_str())].repeat(100)));
    let cases = [
        ("h2_protocol", http2::get(1, &[(":path", "/other")]), (RST_STREAM, PROTOCOL_ERROR)),
        ("h2_protocol", http2::get(1, &[("transfer-encoding", "chunked")]), (RST_STREAM, PROTOCOL_ERROR)),
        ("h2_protocol", http2::get(1, &[("x", "a\r\nb: c")]), (GOAWAY, PROTOCOL_ERROR)),
        ("h2_protocol", http2::get(1, &[(":unknown", "x")]), (GOAWAY, PROTOCOL_ERROR)),
        ("h2_flood", (0..1_000).flat_map(resets).collect(), (GOAWAY, ENHANCE_YOUR_CALM)),
        ("h2_flood", [endless, piece.repeat(300)].concat(), (GOAWAY, ENHANCE_YOUR_CALM)),
    ];
    for (index, (reason, bytes, expected)) in cases.into_iter().enumerate() {
        let before = refusals(mesh, reason);
        assert_eq!(http2::refused(web.connect(), &bytes), Some(expected), "case {index}: {reason}");
        counted(mesh, reason, before + 1);
    }
}

/// How often the waypoint says that it refused something for this reason.
fn refusals(mesh: &Mesh<'_>, reason: &str) -> u64 {
    let start = format!("ambit_refused_total{{reporter=\"waypoint\",reason=\"{reason}\"}} ");
    let metrics = mesh.operators("/stats/prometheus");
    metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or(0)
}

/// Waits until this has been counted so often: what a client saw end may be counted a moment later.
fn counted(mesh: &Mesh<'_>, reason: &str, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while refusals(mesh, reason) < count {
        assert!(Instant::now() < deadline, "{reason}: {} of {count}\n{}", refusals(mesh, reason), mesh.printed());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(refusals(mesh, reason), count, "{reason}");
}
