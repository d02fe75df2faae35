//! Answers that send the client elsewhere.

use ::http::{HeaderValue, Response, header};
use ambit_mesh::view::routes::Redirect;

use crate::{request::Checked, respond, upstream::Body};

/// The answer. `port` is what the client asked for.
///
/// # Errors
/// What comes of it can't be written in a header.
pub(super) fn answer(redirect: &Redirect, checked: &Checked, prefix: usize, port: u16) -> Result<Response<Body>, ()> {
    let scheme = redirect.scheme.unwrap_or("http");
    let host = redirect.hostname.as_deref().unwrap_or(checked.authority.host());
    let port = match (redirect.port, redirect.scheme) {
        (Some(port), _) => Some(port),
        // The scheme's own.
        (None, Some(_)) => None,
        (None, None) => Some(port),
    };
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != usual).map(|port| format!(":{port}")).unwrap_or_default();
    let target = checked.target.as_str();
    let target = redirect.path.as_ref().map_or_else(|| target.to_owned(), |path| path.apply(target, prefix));
    let location = HeaderValue::try_from(format!("{scheme}://{host}{port}{target}")).map_err(drop)?;
    let mut response = Response::new(respond::empty());
    *response.status_mut() = redirect.status;
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    Ok(response)
}
