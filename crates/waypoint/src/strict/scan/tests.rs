use super::*;

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\n";

/// The first thing found, by its place in the whole, however the bytes are divided.
fn scan(bytes: &[u8], step: usize) -> Found {
    let mut scanner = Scanner::default();
    for (index, part) in bytes.chunks(step).enumerate() {
        let before = index * step;
        match scanner.scan(part) {
            Found::Nothing => {}
            Found::Asked { end } => return Found::Asked { end: before + end },
            Found::Refused { at, in_head, refusal } => {
                return Found::Refused { at: before + at, in_head, refusal };
            }
        }
    }
    Found::Nothing
}

#[test]
fn one_reading_passes_however_it_is_divided() {
    let cases = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n".to_owned(),
        format!("\r\n\r\n{POST}content-length: 3\r\n\r\n\n\n\r{POST}Content-Length:\t0 \r\n\r\n{POST}\r\n"),
        format!("{POST}transfer-encoding: Chunked\r\n\r\n3;a=\"b\"\r\n\n\r\n\r\n00\r\nx: \u{e9}\r\n\r\n{POST}\r\n"),
        format!(
            "{POST}Upgrade: h2c\r\ncontent-length: 1\r\n\r\nx{POST}x-content-length: +\r\ncontent-lengthy: -\r\n\r\n"
        ),
    ];
    for case in cases {
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(scan(case.as_bytes(), step), Found::Nothing, "{case:?} by {step}");
        }
    }
    let asks = b"GET / HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\n\r\n\x81\x01";
    for step in [1, 5, 1000] {
        assert_eq!(scan(asks, step), Found::Asked { end: asks.len() - 2 });
    }
}

#[test]
fn what_is_refused_never_ends_its_head() {
    use Refusal::*;
    let cases = [
        ("GET / HTTP/1.1\nhost: a\r\n\r\n", BareLineFeed),
        ("\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", BareLineFeed),
        ("GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", BareLineFeed),
        ("GET / HTTP/1.1\r\nhost: a\r\n\n", BareLineFeed),
        ("GET / HTTP/1.1\r\nhost: a\rx: y\r\n\r\n", BareCarriageReturn),
        ("GET / HTTP/1.1\r\rhost: a\r\n\r\n", BareCarriageReturn),
        ("GET / HTTP/1.1\r\nhost: a\r\n\rx", BareCarriageReturn),
        ("GET / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\n\thost: a\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", SpaceInName),
        ("GET / HTTP/1.1\r\nhost\r\n\r\n", SpaceInName),
        ("GET / HTTP/1.1\r\ncontent-length: 1\r\nContent-Length: 1\r\n\r\n", RepeatedLength),
        ("GET / HTTP/1.1\r\ncontent-length: 1, 1\r\n\r\n", InvalidLength),
        ("GET / HTTP/1.1\r\ncontent-length: 0x1\r\n\r\n", InvalidLength),
        ("GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", InvalidLength),
        ("GET / HTTP/1.1\r\ncontent-length:\r\n\r\n", InvalidLength),
        ("GET / HTTP/1.1\r\ncontent-length: 18446744073709551616\r\n\r\n", InvalidLength),
        ("GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: x\r\n\r\n", LengthAndEncoding),
        ("GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", LengthAndEncoding),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", RepeatedEncoding),
        ("GET / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", UnknownEncoding),
        ("GET / HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n", UnknownEncoding),
        ("GET / HTTP/1.1\r\ntransfer-encoding: \"chunked\"\r\n\r\n", UnknownEncoding),
        ("GET / HTTP/1.1\r\ntransfer-encoding:\x0bchunked\r\n\r\n", UnknownEncoding),
        ("GET / HTTP/1.1\r\ntransfer-encoding: chunked                  , x\r\n\r\n", UnknownEncoding),
        ("GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", EncodingInHttp10),
    ];
    for (case, expected) in cases {
        for step in [1, 2, 1000] {
            let found = scan(case.as_bytes(), step);
            let Found::Refused { at, in_head: true, refusal } = found else { panic!("{case:?}: {found:?}") };
            assert_eq!(refusal, expected, "{case:?}");
            let passed = &case[..at];
            assert!(!passed.contains("\r\n\r\n") && !passed.contains("\n\n"), "{passed:?} of {case:?}");
        }
    }
}

#[test]
fn what_is_valid_in_no_value_does_not_pass_in_a_framing_field() {
    for (field, expected) in [
        ("content-length: 1\x0b", Refusal::InvalidLength),
        ("content-length:\x7f1", Refusal::InvalidLength),
        ("transfer-encoding:\x0bchunked", Refusal::UnknownEncoding),
        ("transfer-encoding: chunked\0", Refusal::UnknownEncoding),
    ] {
        // The line hasn't ended yet.
        let case = format!("{POST}{field}");
        let control = case.bytes().skip(POST.len()).position(|byte| byte.is_ascii_control()).expect("one");
        let refused = Found::Refused { at: POST.len() + control, in_head: true, refusal: expected };
        assert_eq!(scan(case.as_bytes(), 1000), refused, "{case:?}");
    }
}

#[test]
fn chunks_have_one_form() {
    use Refusal::*;
    let long = format!("1;{}\r\n", "x".repeat(MAX_CHUNK_LINE_BYTES + 1));
    let cases = [
        ("+1\r\n", InvalidChunk),
        ("-1\r\n", InvalidChunk),
        (" 1\r\n", InvalidChunk),
        ("1 \r\n", InvalidChunk),
        ("0x1\r\n", InvalidChunk),
        (";a\r\n", InvalidChunk),
        ("\r\n", InvalidChunk),
        ("1\n", InvalidChunk),
        ("1;a\n", InvalidChunk),
        ("1;a\rb\r\n", InvalidChunk),
        ("1;\0\r\n", InvalidChunk),
        ("10000000000000000\r\n", InvalidChunk),
        ("1\r\nab\r\n", InvalidChunk),
        ("1\r\na\n", InvalidChunk),
        ("1\r\na\rb", InvalidChunk),
        ("0\r\n\n", InvalidTrailer),
        ("0\r\na: b\nc: d\r\n\r\n", InvalidTrailer),
        ("0\r\na: b\rc: d\r\n\r\n", InvalidTrailer),
        ("0\r\n a: b\r\n\r\n", InvalidTrailer),
        ("0\r\n\rx", InvalidChunk),
        (long.as_str(), InvalidChunk),
    ];
    for (case, expected) in cases {
        let bytes = format!("{POST}transfer-encoding: chunked\r\n\r\n{case}");
        for step in [1, 1000, 10_000] {
            let found = scan(bytes.as_bytes(), step);
            let Found::Refused { in_head: false, refusal, .. } = found else { panic!("{case:?}: {found:?}") };
            assert_eq!(refusal, expected, "{case:?}");
        }
    }
}
