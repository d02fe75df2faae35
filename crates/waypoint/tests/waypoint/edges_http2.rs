//! HTTP/2 at its edges, as raw frames: streams reset, connections ended, with which code, and counted.

use ambit_hbone::Tunnel;
use ambit_waypoint::Refusal;
use ambit_xds::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend::{self, Raw},
    edges_http1::{count, counted},
    mesh::{Mesh, Shape, allow_all, soon},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const GET: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":authority", "mlflow"), (":path", "/")];
const POST: &[(&str, &str)] = &[(":method", "POST"), (":scheme", "http"), (":authority", "mlflow"), (":path", "/")];

/// What the waypoint has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    /// The connection's end.
    End,
}

use Outcome::{End, GoAway, Reset, Status};

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals that no table remembers.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &str| {
        let mut left = text.len();
        if left < 127 {
            block.push(u8::try_from(left).expect("short"));
        } else {
            block.push(127);
            left -= 127;
            while left >= 128 {
                block.push(u8::try_from(left % 128 + 128).expect("a byte"));
                left /= 128;
            }
            block.push(u8::try_from(left).expect("a byte"));
        }
        block.extend_from_slice(text.as_bytes());
    };
    for (name, value) in fields {
        block.push(0x10);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

fn request(stream: u32, fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

fn get(more: &[(&str, &str)]) -> Vec<u8> {
    request(1, &[GET, more].concat(), END_STREAM)
}

fn without(name: &str) -> Vec<u8> {
    let fields: Vec<_> = GET.iter().copied().filter(|field| field.0 != name).collect();
    request(1, &fields, END_STREAM)
}

/// Status at the front of a header block as the waypoint's encoder writes it: indexed, or Huffman-coded digits.
fn status_of(block: &[u8]) -> u16 {
    match block {
        [0x88, ..] => 200,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48 | 0x08, 0x03, digits @ ..] => {
            std::str::from_utf8(&digits[..3]).expect("digits").parse().expect("a status")
        }
        [0x48 | 0x08, length, code @ ..] if length & 0x80 != 0 => {
            let bits = code.iter().take(4).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * 4_usize.saturating_sub(code.len()));
            let (mut place, mut status) = (0, 0);
            for _ in 0..3 {
                let short = bits << place >> 27;
                let (digit, width) = if short < 3 { (short, 5) } else { ((bits << place >> 26) - 0b01_1001 + 3, 6) };
                (status, place) = (status * 10 + u16::try_from(digit).expect("a digit"), place + width);
            }
            status
        }
        _ => panic!("no status in {block:02x?}"),
    }
}

async fn open() -> Mesh {
    let mut shape = Shape::of(backend::http2().await);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Http2;
    Mesh::start(shape).await
}

async fn start(mesh: &Mesh) -> Tunnel {
    let mut stream = mesh.tunnel("any").await;
    soon(stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())).await.expect("written");
    stream
}

async fn read(stream: &mut Tunnel) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(id) & 0x7fff_ffff, payload))
}

fn code(payload: &[u8]) -> u32 {
    payload.iter().take(4).fold(0, |code, byte| code << 8 | u32::from(*byte))
}

/// What the waypoint says about this stream, up to its end.
async fn outcomes(stream: &mut Tunnel, about: u32) -> Vec<Outcome> {
    let mut all = Vec::new();
    loop {
        match soon(read(stream)).await {
            None => all.push(End),
            Some((GOAWAY, _, _, payload)) => all.push(GoAway(code(&payload[4..]))),
            Some((RST_STREAM, _, id, payload)) if id == about => all.push(Reset(code(&payload))),
            Some((HEADERS, flags, id, payload)) if id == about => {
                if !all.iter().any(|outcome| matches!(outcome, Status(_))) {
                    all.push(Status(status_of(&payload)));
                }
                if flags & END_STREAM != 0 {
                    return all;
                }
            }
            Some((DATA, flags, id, _)) if id == about && flags & END_STREAM != 0 => return all,
            Some(_) => {}
        }
        if let Some(Reset(_) | GoAway(_) | End) = all.last() {
            return all;
        }
    }
}

struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    expected: Outcome,
    counted: Option<Refusal>,
}

fn case(what: &'static str, bytes: Vec<u8>, expected: Outcome, counted: impl Into<Option<Refusal>>) -> Case {
    Case { what, bytes, expected, counted: counted.into() }
}

async fn run(cases: Vec<Case>) {
    let mesh = open().await;
    let mut wrong = Vec::new();
    for Case { what, bytes, expected, counted: refusal } in cases {
        let before = refusal.map_or(0, |refusal| count(&mesh, refusal));
        let mut stream = start(&mesh).await;
        // The waypoint may have ended it before all is written.
        let _ = soon(stream.write_all(&bytes)).await;
        let _ = stream.flush().await;
        let outcomes = outcomes(&mut stream, 1).await;
        // All rows are shown at once.
        if outcomes.last() != Some(&expected) {
            wrong.push(format!("{what}: {expected:?} expected, not {outcomes:?}"));
        } else if let Some(refusal) = refusal {
            counted(&mesh, refusal, before + 1).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_reset_or_refused() {
    use Refusal::{ConflictingHost, Connect, Http2Protocol, LargeHead, MalformedTarget, NoHost, RepeatedLength};
    let broken = |what, bytes| case(what, bytes, Reset(1), Http2Protocol);
    let ended = |what, bytes| case(what, bytes, GoAway(1), Http2Protocol);
    let post = |fields: &[(&str, &str)], body: &[u8]| {
        [request(1, &[POST, fields].concat(), 0), frame(DATA, END_STREAM, 1, body)].concat()
    };
    let many: Vec<(String, &str)> = (0..101).map(|index| (format!("h{index}"), "1")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    // Over three frames, as large as frames may be.
    let large = block(&[GET, &[("big", &*"x".repeat(100_000))]].concat());
    let large = [
        frame(HEADERS, END_STREAM, 1, &large[..16_000]),
        frame(CONTINUATION, 0, 1, &large[16_000..60_000]),
        frame(CONTINUATION, END_HEADERS, 1, &large[60_000..]),
    ];
    run(vec![
        case("all well", get(&[]), Status(200), None),
        case("te: trailers", get(&[("te", "trailers")]), Status(200), None),
        broken("te: gzip", get(&[("te", "gzip")])),
        broken("te: trailers, gzip", get(&[("te", "trailers, gzip")])),
        broken("connection", get(&[("connection", "close")])),
        broken("keep-alive", get(&[("keep-alive", "5")])),
        broken("proxy-connection", get(&[("proxy-connection", "close")])),
        broken("transfer-encoding", get(&[("transfer-encoding", "chunked")])),
        broken("upgrade", get(&[("upgrade", "websocket")])),
        broken("duplicate :path", get(&[(":path", "/b")])),
        broken("duplicate :method", get(&[(":method", "GET")])),
        broken("duplicate :authority", get(&[(":authority", "mlflow")])),
        broken("pseudo after regular", request(1, &[&GET[..3], &[("x", "y"), (":path", "/")]].concat(), END_STREAM)),
        broken("of a response", get(&[(":status", "200")])),
        ended("unknown pseudo", get(&[(":unknown", "x")])),
        broken("no :method", without(":method")),
        broken("no :scheme", without(":scheme")),
        broken("no :path", without(":path")),
        broken("empty :path", request(1, &[&GET[..3], &[(":path", "")]].concat(), END_STREAM)),
        broken("space in :path", request(1, &[&GET[..3], &[(":path", "/a b")]].concat(), END_STREAM)),
        ended("uppercase name", get(&[("X-Upper", "y")])),
        ended("space in name", get(&[("x y", "z")])),
        ended("line feed in name", get(&[("x\ny", "z")])),
        ended("colon in name", get(&[("x:y", "z")])),
        ended("empty name", get(&[("", "z")])),
        ended("line feed in value", get(&[("x", "a\nb: c")])),
        ended("carriage return in value", get(&[("x", "a\r")])),
        ended("zero in value", get(&[("x", "a\0b")])),
        case("no authority", without(":authority"), Status(400), NoHost),
        case("another host", get(&[("host", "elsewhere")]), Status(400), ConflictingHost),
        case("path without slash", request(1, &[&GET[..3], &[(":path", "x")]].concat(), END_STREAM), Reset(1), None),
        case("star", request(1, &[&GET[..3], &[(":path", "*")]].concat(), END_STREAM), Status(400), MalformedTarget),
        case("CONNECT", request(1, &[(":method", "CONNECT"), (":authority", "a:80")], 0), Status(403), Connect),
        case(
            "extended CONNECT for no WebSocket",
            request(1, &[&[(":method", "CONNECT"), (":protocol", "connect-udp")], &GET[1..]].concat(), 0),
            Status(403),
            Connect,
        ),
        broken(":protocol without CONNECT", get(&[(":protocol", "websocket")])),
        case("a length that fits", post(&[("content-length", "3")], b"abc"), Status(200), None),
        broken("length without body", get(&[("content-length", "5")])),
        broken("body over its length", post(&[("content-length", "2")], b"abc")),
        broken("body under its length", post(&[("content-length", "4")], b"abc")),
        broken("two lengths", post(&[("content-length", "3"), ("content-length", "4")], b"abc")),
        broken("no number", post(&[("content-length", "+3")], b"abc")),
        case(
            "length twice",
            post(&[("content-length", "3"), ("content-length", "3")], b"abc"),
            Status(400),
            RepeatedLength,
        ),
        case("too many headers", get(&many), Status(431), LargeHead),
        case("too large headers", large.concat(), Status(431), None),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_frames_end_the_connection() {
    use Refusal::{Http2FlowControl, Http2FrameSize, Http2Protocol};
    let ended = |what, bytes| case(what, bytes, GoAway(1), Http2Protocol);
    let overflow = 0x7fff_ffff_u32.to_be_bytes();
    let open = || request(1, POST, 0);
    let setting = |id: u16, value: u32| frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let mut oversized = frame(DATA, 0, 1, &[]);
    oversized[..3].copy_from_slice(&[0x01, 0x00, 0x01]);
    run(vec![
        ended("DATA on an idle stream", frame(DATA, 0, 1, b"x")),
        ended("DATA on no stream", frame(DATA, 0, 0, b"x")),
        ended("HEADERS on no stream", request(0, GET, END_STREAM)),
        ended("HEADERS on a server's stream", request(2, GET, END_STREAM)),
        ended("HEADERS within HEADERS", [frame(HEADERS, 0, 1, &block(GET)), request(3, GET, 1)].concat()),
        ended("PING within HEADERS", [frame(HEADERS, 0, 1, &block(GET)), frame(PING, 0, 0, &[0; 8])].concat()),
        ended("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 1, &block(GET))),
        ended("PUSH_PROMISE", [open(), frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])].concat()),
        ended("unknown index", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x7f])),
        ended("half a field", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x10, 0x05, b'x'])),
        ended("padding over the payload", frame(DATA, 8, 1, &[9, 0])),
        ended("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ended("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ended("push other than 0 and 1", setting(2, 2)),
        ended("a window over 2^31 - 1", setting(4, 0x8000_0000)),
        ended("a frame size under 16384", setting(5, 1)),
        ended("PING of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ended("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        ended("RST_STREAM of three bytes", frame(RST_STREAM, 0, 1, &[0; 3])),
        ended("WINDOW_UPDATE by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ended("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        case("connection window overflow", frame(WINDOW_UPDATE, 0, 0, &overflow), GoAway(3), Http2FlowControl),
        case(
            "stream window overflow",
            [open(), frame(WINDOW_UPDATE, 0, 1, &overflow)].concat(),
            Reset(3),
            Http2FlowControl,
        ),
        case("a frame over the agreed size", [open(), oversized].concat(), GoAway(6), Http2FrameSize),
        case("a stream that depends on itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]), Reset(1), Http2Protocol),
        case("a frame of an unknown kind", [frame(0xfe, 0xff, 0, b"grease"), get(&[])].concat(), Status(200), None),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_the_connection() {
    use Refusal::Http2Flood;
    let resets: Vec<u8> = (0..2_000_u32)
        .flat_map(|index| {
            [request(2 * index + 1, GET, END_STREAM), frame(RST_STREAM, 0, 2 * index + 1, &[0, 0, 0, 8])].concat()
        })
        .collect();
    let errors: Vec<u8> =
        (0..2_000_u32).flat_map(|index| request(2 * index + 1, &[GET, &[("te", "x")]].concat(), END_STREAM)).collect();
    let mut continuations = frame(HEADERS, 0, 1, &block(GET));
    (0..20_000).for_each(|_| continuations.extend(frame(CONTINUATION, 0, 1, &[])));
    let mut fields = frame(HEADERS, 0, 1, &block(GET));
    let part = block(&[("big", &*"x".repeat(15_000))]);
    (0..200).for_each(|_| fields.extend(frame(CONTINUATION, 0, 1, &part)));
    let mesh = open().await;
    for (what, bytes) in [
        ("streams reset at once", resets),
        ("streams with errors", errors),
        ("a header block without end", continuations),
        ("headers without end", fields),
    ] {
        let before = count(&mesh, Http2Flood);
        let mut stream = start(&mesh).await;
        let _ = soon(stream.write_all(&bytes)).await;
        let _ = stream.flush().await;
        let mut ended = None;
        while let Some((kind, _, _, payload)) = soon(read(&mut stream)).await {
            if kind == GOAWAY {
                ended = Some(code(&payload[4..]));
                break;
            }
        }
        assert_eq!(ended, Some(11), "{what}");
        counted(&mesh, Http2Flood, before + 1).await;
    }
}

/// These are answered one by one, so a client that doesn't read the answers isn't read from, either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_frames_are_taken_only_as_fast_as_they_are_answered() {
    let mesh = open().await;
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[])] {
        let (reader, mut writer) = tokio::io::split(start(&mesh).await);
        let flood: Vec<u8> = (0..1_000).flat_map(|_| frame(kind, 0, 0, payload)).collect();
        let mut sent = 0;
        let stuck = async {
            while sent < 4_000_000 {
                writer.write_all(&flood).await.expect("written");
                writer.flush().await.expect("flushed");
                sent += 1_000;
            }
        };
        let stuck = tokio::time::timeout(std::time::Duration::from_secs(3), stuck).await;
        assert!(stuck.is_err(), "{sent} frames of kind {kind} were taken without an answer being read");
        drop((reader, writer));
        // Others don't notice.
        let mut other = start(&mesh).await;
        soon(other.write_all(&get(&[]))).await.expect("written");
        assert_eq!(outcomes(&mut other, 1).await.last(), Some(&Status(200)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_the_offer_are_refused_and_nothing_is_smuggled() {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Http11;
    let mesh = Mesh::start(shape).await;
    let mut stream = start(&mesh).await;
    let never: &[(&str, &str)] = &[&GET[..3], &[(":path", "/never")]].concat();
    let many: Vec<u8> = (0..101_u32).flat_map(|index| request(2 * index + 1, never, END_STREAM)).collect();
    soon(stream.write_all(&many)).await.expect("written");
    assert_eq!(outcomes(&mut stream, 201).await, [Reset(7)]);
    counted(&mesh, Refusal::Http2Refused, 1).await;
    drop(stream);

    // A body that looks like a request stays a body on an HTTP/1.1 connection.
    let mut stream = start(&mesh).await;
    let body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let length = body.len().to_string();
    let fields = [&[(":method", "POST")], &GET[1..3], &[(":path", "/body"), ("content-length", &length)]].concat();
    let post = request(1, &fields, 0);
    soon(stream.write_all(&[post, frame(DATA, END_STREAM, 1, body)].concat())).await.expect("written");
    assert_eq!(outcomes(&mut stream, 1).await.last(), Some(&Status(200)));
    let seen: Vec<_> = app.seen().into_iter().filter(|seen| !seen.starts_with("GET /never ")).collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].starts_with("POST /body ") && seen[0].ends_with("host: a\r\n\r\n"), "{seen:?}");
}
