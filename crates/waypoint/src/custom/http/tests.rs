//! Answers of an HTTP provider.

use ambit_mesh::view::HeaderPatterns;

use super::*;

fn options(upstream: &[&str], on_deny: Option<&[&str]>) -> HttpAsk {
    let patterns = |names: &[&str]| {
        HeaderPatterns::parse(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names")
    };
    HttpAsk {
        path_prefix: "".into(),
        request_headers: HeaderPatterns::default(),
        additional_headers: Vec::new(),
        to_upstream_on_allow: patterns(upstream),
        to_downstream_on_allow: HeaderPatterns::default(),
        to_downstream_on_deny: on_deny.map(patterns),
    }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn only_200_allows_and_5xx_is_no_answer() {
    for (status, expected) in [
        (200, Some(true)),
        (201, Some(false)),
        (204, Some(false)),
        (302, Some(false)),
        (401, Some(false)),
        (499, Some(false)),
        (101, None),
        (500, None),
        (503, None),
    ] {
        let status = StatusCode::from_u16(status).expect("a status");
        let answer = answer(&options(&[], None), status, &HeaderMap::new(), Bytes::new());
        let allows = answer.as_ref().ok().map(|answer| matches!(answer, Answer::Allowed(_)));
        assert_eq!(allows, expected, "{status}: {answer:?}");
    }
}

#[test]
fn named_headers_go_on_and_framing_never_does() {
    let sent = headers(&[("x-user", "a"), ("x-user", "b"), ("content-length", "9"), ("connection", "x"), ("y", "1")]);
    let options = options(&["x-*", "content-*", "*ion"], None);
    let Ok(Answer::Allowed(changes)) = answer(&options, StatusCode::OK, &sent, Bytes::new()) else { panic!("allowed") };
    let mut request = headers(&[("x-user", "mallory"), ("content-length", "3")]);
    changes.to_upstream.apply(&mut request);
    assert_eq!(request.get_all("x-user").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(request["content-length"], "3");
    assert!(!request.contains_key("y") && !request.contains_key("connection"));
}

#[test]
fn headers_to_remove_must_be_names() {
    let allow = |names: &'static str| {
        let headers = headers(&[("x-envoy-auth-headers-to-remove", names)]);
        answer(&options(&[], None), StatusCode::OK, &headers, Bytes::new())
    };
    let Ok(Answer::Allowed(changes)) = allow("x-a, Authorization ,,content-length") else { panic!("allowed") };
    let mut request = headers(&[("x-a", "1"), ("authorization", "t"), ("content-length", "3"), ("x-b", "2")]);
    changes.to_upstream.apply(&mut request);
    assert_eq!(request, headers(&[("content-length", "3"), ("x-b", "2")]));
    assert!(matches!(allow("a b"), Err(Failure::Unusable(_))));
}
