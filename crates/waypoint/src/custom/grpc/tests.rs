//! Answers of a gRPC provider, field by field.

use super::*;
use crate::custom::envoy::{BoolValue, Header, HttpStatus, QueryParameter, Status};

fn option(name: &str, value: &str) -> HeaderValueOption {
    let header = Header { key: name.to_owned(), value: value.to_owned(), raw_value: Bytes::new() };
    HeaderValueOption { header: Some(header), append: None, append_action: 0 }
}

fn response(code: Option<i32>, denied: Option<DeniedHttpResponse>, ok: Option<OkHttpResponse>) -> CheckResponse {
    CheckResponse { status: code.map(|code| Status { code }), denied, ok }
}

fn judged(response: CheckResponse) -> Result<Answer, Failure> {
    answer(response, &PathAndQuery::from_static("/a?x=1"))
}

fn allowed(ok: OkHttpResponse) -> Result<Changes, Failure> {
    judged(response(Some(0), None, Some(ok))).map(|answer| match answer {
        Answer::Allowed(changes) => *changes,
        Answer::Denied(_) => panic!("it was allowed"),
    })
}

#[test]
fn only_an_answer_that_says_ok_and_nothing_against_it_allows() {
    let denied = || Some(DeniedHttpResponse::default());
    let ok = || Some(OkHttpResponse::default());
    for (code, denied, ok, expected) in [
        (Some(0), None, None, Some(true)),
        (Some(0), None, ok(), Some(true)),
        (None, None, ok(), Some(true)),
        (Some(7), None, None, Some(false)),
        (Some(7), None, ok(), Some(false)),
        (Some(-1), None, ok(), Some(false)),
        (Some(0), denied(), None, Some(false)),
        (None, denied(), None, Some(false)),
        (Some(16), denied(), None, Some(false)),
        (None, None, None, None),
    ] {
        let answer = judged(response(code, denied, ok));
        let allows = answer.as_ref().ok().map(|answer| matches!(answer, Answer::Allowed(_)));
        assert_eq!(allows, expected, "{code:?}: {answer:?}");
        assert!(answer.is_ok() || answer.is_err_and(|failure| !failure.may_be_ignored()), "never by `failOpen`");
    }
}

#[test]
fn the_status_of_a_denial_is_the_providers_or_403() {
    for (code, expected) in [
        (None, Some(403)),
        (Some(0), Some(403)),
        (Some(401), Some(401)),
        (Some(302), Some(302)),
        (Some(599), Some(599)),
        (Some(101), None),
        (Some(99), None),
        (Some(600), None),
        (Some(-1), None),
        (Some(70_000), None),
    ] {
        let denied = DeniedHttpResponse { status: code.map(|code| HttpStatus { code }), ..Default::default() };
        let answer = judged(response(Some(7), Some(denied), None));
        let status = answer.ok().map(|answer| match answer {
            Answer::Denied(denial) => denial.status().as_u16(),
            Answer::Allowed(_) => panic!("it was denied"),
        });
        assert_eq!(status, expected, "{code:?}");
    }
}

#[test]
fn headers_are_changed_as_each_option_says() {
    let mut appended = option("x-a", "2");
    appended.append = Some(BoolValue { value: true });
    let raw = HeaderValueOption {
        header: Some(Header { key: "X-Raw".into(), value: "text".into(), raw_value: Bytes::from_static(b"\xff") }),
        ..HeaderValueOption::default()
    };
    let ok = OkHttpResponse {
        headers: vec![appended, option("x-b", "set"), raw],
        headers_to_remove: vec!["x-gone".into(), "content-length".into(), ":path".into(), "Host".into()],
        ..OkHttpResponse::default()
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-a", "1"), ("x-b", "old"), ("x-gone", "g"), ("content-length", "3"), ("host", "h")] {
        headers.append(name, HeaderValue::from_static(value));
    }
    allowed(ok).expect("usable").to_upstream.apply(&mut headers);
    let mut seen: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    seen.sort_unstable();
    let expected: [(&str, &[u8]); 5] =
        [("content-length", b"3"), ("host", b"h"), ("x-a", b"1,2"), ("x-b", b"set"), ("x-raw", b"\xff")];
    assert_eq!(seen, expected);
}

#[test]
fn the_responses_headers_follow_append_or_its_action() {
    let with = |append: Option<bool>, action: HeaderAppendAction, name: &str, value: &str| HeaderValueOption {
        append: append.map(|value| BoolValue { value }),
        append_action: action as i32,
        ..option(name, value)
    };
    use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let ok = OkHttpResponse {
        response_headers_to_add: vec![
            with(Some(true), AddIfAbsent, "a", "2"),
            with(Some(false), AddIfAbsent, "b", "2"),
            with(None, AddIfAbsent, "c", "2"),
            with(None, AddIfAbsent, "new", "2"),
            with(None, OverwriteIfExists, "d", "2"),
            with(None, OverwriteIfExists, "never", "2"),
            with(None, OverwriteIfExistsOrAdd, "e", "2"),
            with(None, AppendIfExistsOrAdd, "set-cookie", "2"),
        ],
        ..OkHttpResponse::default()
    };
    let mut headers = HeaderMap::new();
    for name in ["a", "b", "c", "d", "e", "set-cookie"] {
        headers.append(name, HeaderValue::from_static("1"));
    }
    allowed(ok).expect("usable").to_client.expect("changes").apply(&mut headers);
    let lines =
        |name: &str| headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>().join(" ");
    let seen: Vec<_> = ["a", "b", "c", "new", "d", "never", "e", "set-cookie"].map(lines).into();
    assert_eq!(seen, ["1 2", "2", "1", "2", "2", "", "2", "1 2"]);
}

#[test]
fn what_would_make_another_request_of_it_is_not_done() {
    for name in
        [":path", ":method", ":authority", "host", "content-length", "transfer-encoding", "connection", "te", ""]
    {
        let ok = OkHttpResponse { headers: vec![option(name, "x")], ..OkHttpResponse::default() };
        assert!(matches!(allowed(ok), Err(Failure::Unusable(_))), "{name}");
        let ok = OkHttpResponse { response_headers_to_add: vec![option(name, "x")], ..OkHttpResponse::default() };
        assert!(matches!(allowed(ok), Err(Failure::Unusable(_))), "{name} of the response");
    }
    let split = OkHttpResponse { headers: vec![option("x-a", "1\r\nx-b: 2")], ..OkHttpResponse::default() };
    assert!(matches!(allowed(split), Err(Failure::Unusable(_))));
    let many = OkHttpResponse { headers: vec![option("x-a", "1"); MAX_CHECK_EDITS + 1], ..OkHttpResponse::default() };
    assert!(matches!(allowed(many), Err(Failure::Unusable(_))));
    let query = OkHttpResponse {
        query_parameters_to_set: vec![QueryParameter { key: "u".into(), value: "a b".into() }],
        query_parameters_to_remove: vec!["x".into()],
        ..OkHttpResponse::default()
    };
    assert_eq!(allowed(query).expect("usable").target.expect("changed").as_str(), "/a?u=a+b");
    assert!(allowed(OkHttpResponse::default()).expect("usable").target.is_none());
}

#[test]
fn a_message_comes_in_one_frame() {
    let question = CheckRequest::default();
    assert_eq!(&framed(&question)[..], [0; 5]);
    let empty = unframed(&Bytes::from_static(&[0; 5])).expect("a message");
    assert_eq!(empty, CheckResponse::default());
    for bytes in [&[][..], &[0; 4], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 0xff]] {
        assert!(unframed(&Bytes::copy_from_slice(bytes)).is_err_and(|failure| failure.may_be_ignored()), "{bytes:?}");
    }
}

#[test]
fn text_that_is_not_utf_8_is_shown_as_in_envoy() {
    assert_eq!(lossy(b"a\xff\xfeb\xc3"), "a!!b!");
    assert_eq!(lossy("é".as_bytes()), "é");
}
