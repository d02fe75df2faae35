//! What filters change in a request or response.

use ::http::{
    HeaderMap, HeaderValue, Request, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use ambit_mesh::view::routes::{Filters, HeaderEdits};

use super::is_framed;
use crate::{
    random::Random,
    request::{self, Checked},
    upstream::{Body, Protocol},
};

/// A request that may be sent several times.
pub(super) struct Template {
    /// As the client sent it.
    pub(super) head: Parts,
    /// Its facts after rewrites and changes of headers, if there are any.
    pub(super) checked: Option<Checked>,
    pub(super) has_body: bool,
    /// The protocol that the client asks to switch to.
    pub(super) asked: Option<HeaderValue>,
}

/// The request as these filters change it; nothing if they don't.
///
/// # Errors
/// The path that comes of it is none.
pub(super) fn changed(checked: &Checked, filters: [&Filters; 2], prefix: usize) -> Result<Option<Checked>, ()> {
    if filters.iter().all(|filters| filters.rewrite.is_none() && filters.request_headers.is_none()) {
        return Ok(None);
    }
    let mut changed = checked.clone();
    for filters in filters {
        if let Some(edits) = &filters.request_headers {
            apply(edits, &mut changed.headers);
        }
        let Some(rewrite) = &filters.rewrite else { continue };
        if let Some(hostname) = &rewrite.hostname {
            changed.authority = Authority::try_from(&**hostname).map_err(drop)?;
            if let Ok(value) = HeaderValue::from_str(hostname) {
                changed.headers.remove(header::HOST);
                changed.headers.insert(header::HOST, value);
            }
        }
        if let Some(path) = &rewrite.path {
            let target = path.apply(checked.target.as_str(), prefix);
            changed.target = PathAndQuery::try_from(target).map_err(drop)?;
        }
    }
    Ok(Some(changed))
}

/// Changes headers.
pub(super) fn apply(edits: &HeaderEdits, headers: &mut HeaderMap) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (name, value) in &edits.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &edits.add {
        headers.append(name, value.clone());
    }
}

// === impl Template ===

impl Template {
    /// The request for a backend that speaks this.
    pub(super) fn request(
        &self,
        original: &Checked,
        filters: [&Filters; 2],
        protocol: Protocol,
        random: &Random,
        body: Body,
    ) -> Request<Body> {
        let checked = self.checked.as_ref().unwrap_or(original);
        let mut head = self.head.clone();
        if checked.authority != original.authority {
            head.headers.remove(header::HOST);
        }
        let asked = self.asked.clone().filter(|_| protocol == Protocol::Http1);
        let mut head = request::forwarded(head, checked, protocol, asked, || random.request_id());
        for edits in filters.into_iter().filter_map(|filters| filters.request_headers.as_ref()) {
            apply(edits, &mut head.headers);
        }
        if self.has_body && protocol == Protocol::Http1 && !is_framed(&head.headers) {
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Request::from_parts(head, body)
    }
}
