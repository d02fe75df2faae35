//! Asking over HTTP: the request's own method and path, under a prefix; status 200 allows it.

use ambit_mesh::view::HttpAsk;
use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version, header,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::Full;

use super::{
    answer::{Answer, Denial, edits_of, is_framing},
    changes::{Changes, ToClient},
    client::{Client, Failure},
    exchange::{Check, PARTIAL_BODY},
};
use crate::{limits::MAX_CHECK_EDITS, upstream::Protocol};

/// Asks about a request.
///
/// # Errors
/// When there is no answer that can be used.
pub(super) async fn ask(client: &Client, options: &HttpAsk, check: &Check<'_>) -> Result<Answer, Failure> {
    let protocol = protocol(client, check);
    let request = question(options, check, protocol)?;
    let shared = &check.session.shared;
    let (response, body, _trailers) = client.send(shared, &check.standing.view, protocol, request).await?;
    answer(options, response.status(), response.headers(), body)
}

/// Names the headers that go, for the application to not see them.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
/// Headers of a denial that the client gets even where some are named.
const ALWAYS_ON_DENY: [&str; 2] = ["www-authenticate", "location"];

/// HTTP/2 only where its Service's port says so.
fn protocol(client: &Client, check: &Check<'_>) -> Protocol {
    let authorizer = client.authorizer();
    let mut services = check.standing.view.services_by_hostname(&authorizer.host);
    let spoken = services.find_map(|service| service.ports.get(&authorizer.port)).map(|port| port.protocol);
    match spoken {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => Protocol::Http2,
        _ => Protocol::Http1,
    }
}

fn question(options: &HttpAsk, check: &Check<'_>, protocol: Protocol) -> Result<Request<Full<Bytes>>, Failure> {
    let Check { checked, headers, body, .. } = check;
    let unaskable = |what: &str| Failure::Exchange(format!("it can't be asked: {what}"));
    let path = match &*options.path_prefix {
        "" => checked.target.clone(),
        prefix => PathAndQuery::try_from(format!("{prefix}{}", checked.target))
            .map_err(|_| unaskable("the path under its prefix is none"))?,
    };
    let bytes = body.as_ref().map(|body| body.bytes.clone()).unwrap_or_default();
    let length = bytes.len();
    let mut request = Request::new(Full::new(bytes));
    *request.method_mut() = checked.method.clone();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if protocol == Protocol::Http2 {
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(checked.authority.clone()));
        *request.version_mut() = Version::HTTP_2;
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| unaskable("the path is none"))?;
    let question = request.headers_mut();
    let sent = |name: &HeaderName| *name == header::AUTHORIZATION || options.request_headers.matches(name.as_str());
    for (name, value) in headers.iter().filter(|(name, _)| !is_framing(name) && **name != header::EXPECT && sent(name))
    {
        question.append(name, value.clone());
    }
    if let Some(body) = body {
        question.insert(PARTIAL_BODY, HeaderValue::from_static(if body.is_partial { "true" } else { "false" }));
    }
    for (name, value) in &options.additional_headers {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| unaskable("an additional header has no name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| unaskable("an additional header has no value"))?;
        if !is_framing(&name) {
            question.insert(name, value);
        }
    }
    if protocol == Protocol::Http1 {
        let host = HeaderValue::from_str(checked.authority.as_str()).map_err(|_| unaskable("the host is none"))?;
        question.insert(header::HOST, host);
    }
    question.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(request)
}

fn answer(options: &HttpAsk, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Result<Answer, Failure> {
    if status.is_server_error() {
        return Err(Failure::Exchange(format!("it answered status {}", status.as_u16())));
    }
    if status != StatusCode::OK {
        let wanted = |name: &str| match &options.to_downstream_on_deny {
            None => true,
            Some(named) => named.matches(name) || ALWAYS_ON_DENY.contains(&name),
        };
        let denial = Denial::new(status, edits_of(headers, wanted), body);
        let denial = denial.ok_or_else(|| Failure::Unusable("it has a status that no response may have".to_owned()))?;
        return Ok(Answer::Denied(Box::new(denial)));
    }
    let mut to_upstream = edits_of(headers, |name| options.to_upstream_on_allow.matches(name));
    let removed = headers.get_all(TO_REMOVE).iter().filter_map(|names| names.to_str().ok());
    let names = removed.flat_map(|names| names.split(',')).map(str::trim).filter(|name| !name.is_empty());
    for (count, name) in names.enumerate() {
        if count == MAX_CHECK_EDITS {
            return Err(Failure::Unusable(format!("it wants more than {MAX_CHECK_EDITS} changes")));
        }
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| Failure::Unusable(format!("`{TO_REMOVE}` names no header")))?;
        if !is_framing(&name) {
            to_upstream.remove(name);
        }
    }
    let to_client = edits_of(headers, |name| options.to_downstream_on_allow.matches(name));
    let to_client = (!to_client.is_empty()).then_some(ToClient(to_client));
    Ok(Answer::Allowed(Box::new(Changes { to_upstream, target: None, to_client })))
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;
