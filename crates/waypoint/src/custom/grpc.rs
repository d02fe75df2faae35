//! Asking over gRPC: Envoy's `Authorization/Check`.

use std::{net::SocketAddr, time::SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::Full;
use prost::Message;

use super::{
    answer::{Answer, Denial, is_framing},
    changes::{Changes, Edits, ToClient, with_query},
    client::{Client, Failure},
    envoy::{
        Address, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderAppendAction,
        HeaderValueOption, HttpRequest, OkHttpResponse, Peer, Request as CheckedRequest, SocketAddress, Timestamp,
    },
    exchange::{Check, PARTIAL_BODY},
};
use crate::{
    limits::MAX_CHECK_EDITS,
    session::{Session, Standing},
    upstream::Protocol,
};

/// Asks about a request.
///
/// # Errors
/// When there is no answer that can be used.
pub(super) async fn ask_about_request(client: &Client, check: &Check<'_>) -> Result<Answer, Failure> {
    let request = Some(CheckedRequest { time: Some(now()), http: Some(attributes(check)) });
    let question = question(check.session, request);
    let response = call(client, check.session, check.standing, &question).await?;
    answer(response, &check.checked.target)
}

/// Asks about a connection. What an answer says of HTTP doesn't matter then.
///
/// # Errors
/// When there is no answer that can be used.
pub(super) async fn ask_about_connection(
    client: &Client,
    session: &Session,
    standing: &Standing,
) -> Result<Answer, Failure> {
    let response = call(client, session, standing, &question(session, None)).await?;
    Ok(match verdict(&response)? {
        true => Answer::Allowed(Box::default()),
        false => Answer::Denied(Box::new(Denial::bare(StatusCode::FORBIDDEN))),
    })
}

const CHECK: PathAndQuery = PathAndQuery::from_static("/envoy.service.auth.v3.Authorization/Check");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
/// Longest `grpc-timeout` in milliseconds: eight digits.
const MAX_TIMEOUT_MS: u128 = 99_999_999;

fn question(session: &Session, request: Option<CheckedRequest>) -> CheckRequest {
    let peer = |address: SocketAddr, principal: String| Peer {
        address: Some(Address {
            socket_address: Some(SocketAddress { address: address.ip().to_string(), port: address.port().into() }),
        }),
        principal,
    };
    let source = peer(session.client.address, session.client.identity.to_string());
    let destination = peer(session.target.address, session.shared.config.identity.to_string());
    CheckRequest {
        attributes: Some(AttributeContext { source: Some(source), destination: Some(destination), request }),
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // Less than a billion.
        nanos: since.subsec_nanos() as i32,
    }
}

fn attributes(check: &Check<'_>) -> HttpRequest {
    let Check { checked, headers, body, .. } = check;
    let mut attributes = HttpRequest {
        id: headers.get("x-request-id").map(text).unwrap_or_default(),
        method: checked.method.to_string(),
        path: checked.target.to_string(),
        host: checked.authority.to_string(),
        scheme: "http".to_owned(),
        size: length(headers),
        protocol: if checked.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        ..HttpRequest::default()
    };
    let map = &mut attributes.headers;
    for name in headers.keys().filter(|name| **name != header::HOST) {
        let separator = if *name == header::COOKIE { "; " } else { "," };
        let lines: Vec<_> = headers.get_all(name).iter().map(text).collect();
        map.insert(name.as_str().to_owned(), lines.join(separator));
    }
    for (name, value) in [
        (":authority", &attributes.host),
        (":method", &attributes.method),
        (":path", &attributes.path),
        (":scheme", &attributes.scheme),
    ] {
        map.insert(name.to_owned(), value.clone());
    }
    if let Some(body) = body {
        map.insert(PARTIAL_BODY.to_owned(), body.is_partial.to_string());
        if body.as_bytes {
            attributes.raw_body = body.bytes.clone();
        } else {
            attributes.body = lossy(&body.bytes);
        }
    }
    attributes
}

fn length(headers: &HeaderMap) -> i64 {
    let declared = headers.get(header::CONTENT_LENGTH);
    declared.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(-1)
}

fn text(value: &HeaderValue) -> String {
    lossy(value.as_bytes())
}

/// Text of what need not be UTF-8: `!` stands for what isn't, as in Envoy.
fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

async fn call(
    client: &Client,
    session: &Session,
    standing: &Standing,
    question: &CheckRequest,
) -> Result<CheckResponse, Failure> {
    let authorizer = client.authorizer();
    let (host, port) = (&authorizer.host, authorizer.port);
    let bracketed = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(bracketed).path_and_query(CHECK).build();
    let mut request = Request::new(Full::new(framed(question)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.map_err(|error| Failure::Exchange(format!("`{host}` is no host: {error}")))?;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let timeout_ms = authorizer.timeout.as_millis().clamp(1, MAX_TIMEOUT_MS);
    if let Ok(timeout) = HeaderValue::try_from(format!("{timeout_ms}m")) {
        headers.insert("grpc-timeout", timeout);
    }
    let sent = client.send(&session.shared, &standing.view, Protocol::Http2, request).await?;
    let (response, body, trailers) = sent;
    if response.status() != StatusCode::OK {
        return Err(Failure::Exchange(format!("it answered HTTP status {}", response.status().as_u16())));
    }
    // A call that fails at once has its status in the headers.
    let status = trailers.get("grpc-status").or_else(|| response.headers().get("grpc-status"));
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => unframed(&body),
        Some(status) => {
            let status = lossy(status.get(..3).unwrap_or(status));
            Err(Failure::Exchange(format!("it answered gRPC status {status}")))
        }
        None => Err(Failure::Exchange("its answer ended without a gRPC status".to_owned())),
    }
}

/// Not compressed, its length, the message.
fn framed(question: &CheckRequest) -> Bytes {
    let length = question.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    // Headers and body are bounded far below 4 GiB.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows as needed, so there is always room.
    let _ = question.encode(&mut frame);
    frame.freeze()
}

fn unframed(body: &Bytes) -> Result<CheckResponse, Failure> {
    let malformed = |why: &str| Failure::Exchange(format!("its answer can't be read: {why}"));
    let Some((&[compressed, a, b, c, d], message)) = body.split_first_chunk::<5>() else {
        return Err(malformed("there is no message"));
    };
    if compressed != 0 {
        return Err(malformed("it is compressed, which wasn't offered"));
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(malformed("it isn't one message"));
    }
    CheckResponse::decode(message).map_err(|error| malformed(&error.to_string()))
}

/// Whether an answer allows.
fn verdict(response: &CheckResponse) -> Result<bool, Failure> {
    match (&response.status, &response.denied, &response.ok) {
        // Nothing said is nothing allowed.
        (None, None, None) => Err(Failure::Unusable("it is empty".to_owned())),
        (_, Some(_), _) => Ok(false),
        (status, None, _) => Ok(status.unwrap_or_default().code == 0),
    }
}

fn answer(response: CheckResponse, target: &PathAndQuery) -> Result<Answer, Failure> {
    if verdict(&response)? {
        let ok = response.ok.unwrap_or_default();
        return Ok(Answer::Allowed(Box::new(changes(ok, target).map_err(Failure::Unusable)?)));
    }
    let denial = denial(response.denied.unwrap_or_default())?;
    Ok(Answer::Denied(Box::new(denial)))
}

fn denial(denied: DeniedHttpResponse) -> Result<Denial, Failure> {
    let code = denied.status.map(|status| status.code).filter(|code| *code != 0);
    let status = code.map_or(Some(StatusCode::FORBIDDEN), |code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let mut edits = Edits::default();
    // What the client would see must be sound; what of it can't be sent isn't, and it is denied all the same.
    for option in denied.headers.iter().take(MAX_CHECK_EDITS) {
        if let Ok((name, value)) = header_of(option)
            && !is_framing(&name)
        {
            put(&mut edits, option, name, value);
        }
    }
    let denial = status.and_then(|status| Denial::new(status, edits, Bytes::from(denied.body)));
    denial.ok_or_else(|| Failure::Unusable("it has a status that no response may have".to_owned()))
}

fn changes(ok: OkHttpResponse, target: &PathAndQuery) -> Result<Changes, String> {
    let edits = ok.headers.len() + ok.headers_to_remove.len() + ok.response_headers_to_add.len();
    let parameters = ok.query_parameters_to_set.len() + ok.query_parameters_to_remove.len();
    if edits + parameters > MAX_CHECK_EDITS {
        return Err(format!("it wants more than {MAX_CHECK_EDITS} changes"));
    }
    let mut to_upstream = Edits::default();
    for option in &ok.headers {
        let (name, value) = settable(option)?;
        if option.append.is_some_and(|append| append.value) {
            to_upstream.append(name, value);
        } else {
            to_upstream.set(name, value);
        }
    }
    for name in &ok.headers_to_remove {
        // As in Envoy, those that frame or address the request stay.
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
            && !is_framing(&name)
        {
            to_upstream.remove(name);
        }
    }
    let mut to_client = Edits::default();
    for option in &ok.response_headers_to_add {
        let (name, value) = settable(option)?;
        put(&mut to_client, option, name, value);
    }
    let set: Vec<_> =
        ok.query_parameters_to_set.into_iter().map(|parameter| (parameter.key, parameter.value)).collect();
    let target = (parameters > 0)
        .then(|| with_query(target, &set, &ok.query_parameters_to_remove).ok_or("the query can't be written"))
        .transpose()?;
    Ok(Changes { to_upstream, target, to_client: (!to_client.is_empty()).then_some(ToClient(to_client)) })
}

/// A header of a response. `append` says what to do, else the action where one is given, else it is set.
fn put(edits: &mut Edits, option: &HeaderValueOption, name: HeaderName, value: HeaderValue) {
    match (option.append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(append), _) if append.value => edits.add(name, value),
        (Some(_), _) => edits.set(name, value),
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => edits.set_if_absent(name, value),
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => edits.set_if_present(name, value),
        // Cookies that stand for themselves: one doesn't take another's place.
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) if name == header::SET_COOKIE => edits.add(name, value),
        (None, _) => edits.set(name, value),
    }
}

/// A header that may be set.
fn settable(option: &HeaderValueOption) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = header_of(option)?;
    if is_framing(&name) {
        return Err(format!("header `{name}` can't be set"));
    }
    Ok((name, value))
}

fn header_of(option: &HeaderValueOption) -> Result<(HeaderName, HeaderValue), String> {
    let header = option.header.as_ref().ok_or("a header has no name")?;
    // Also refuses `:path` and the like.
    let name = HeaderName::from_bytes(header.key.as_bytes()).map_err(|_| "a header's name can't be set".to_owned())?;
    let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let value = HeaderValue::from_bytes(value).map_err(|_| format!("the value of header `{name}` is none"))?;
    Ok((name, value))
}

#[cfg(test)]
#[path = "grpc/tests.rs"]
mod tests;
