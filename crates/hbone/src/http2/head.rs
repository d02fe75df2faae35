//! What a HEADERS frame says, checked by the rules of RFC 9113 8.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, uri::Authority};

use super::hpack;

/// A request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) authority: Option<Authority>,
    pub(crate) headers: HeaderMap,
}

/// A response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// The fields of a block as they come.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    method: Option<Bytes>,
    authority: Option<Bytes>,
    status: Option<Bytes>,
    scheme: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
    headers: HeaderMap,
    size: usize,
    /// The rules are broken, so this is a request or response to nobody.
    malformed: bool,
}

/// A head that is no request or response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

// === impl Fields ===

impl Fields {
    /// Takes in a field; what goes beyond `limit` bytes is not kept.
    pub(crate) fn add(&mut self, name: &Bytes, value: &Bytes, limit: usize) {
        self.size = self.size.saturating_add(name.len() + value.len() + 32);
        if self.size > limit {
            return;
        }
        if name.starts_with(b":") {
            let slot = match &name[..] {
                b":method" => &mut self.method,
                b":authority" => &mut self.authority,
                b":status" => &mut self.status,
                b":scheme" => &mut self.scheme,
                b":path" => &mut self.path,
                b":protocol" => &mut self.protocol,
                _ => return self.malformed = true,
            };
            // Pseudo headers come once, and before the others.
            self.malformed |= slot.is_some() || !self.headers.is_empty();
            *slot = Some(value.clone());
            return;
        }
        let connection_specific: [&[u8]; 5] =
            [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];
        self.malformed |= connection_specific.contains(&&name[..]) || name.iter().any(u8::is_ascii_uppercase);
        match (HeaderName::from_lowercase(name), HeaderValue::from_maybe_shared(value.clone())) {
            (Ok(name), Ok(value)) => self.malformed |= self.headers.try_append(name, value).is_err(),
            _ => self.malformed = true,
        }
    }

    /// Whether there was more than the limit.
    pub(crate) fn is_too_large(&self, limit: usize) -> bool {
        self.size > limit
    }

    /// As a request. A CONNECT has an authority and neither scheme, path nor protocol.
    pub(crate) fn into_request(self) -> Result<RequestHead, Malformed> {
        let method = Method::from_bytes(self.method.as_deref().unwrap_or_default()).map_err(|_| Malformed)?;
        let authority = self.authority.map(|text| Authority::try_from(&text[..]).map_err(|_| Malformed)).transpose()?;
        let shaped = if method == Method::CONNECT {
            authority.is_some() && self.scheme.is_none() && self.path.is_none()
        } else {
            self.scheme.is_some() && self.path.is_some_and(|path| !path.is_empty())
        };
        if self.malformed || !shaped || self.protocol.is_some() || self.status.is_some() {
            return Err(Malformed);
        }
        Ok(RequestHead { method, authority, headers: self.headers })
    }

    /// As a response.
    pub(crate) fn into_response(self) -> Result<ResponseHead, Malformed> {
        let status = StatusCode::from_bytes(self.status.as_deref().unwrap_or_default()).map_err(|_| Malformed)?;
        let foreign = [self.method, self.authority, self.scheme, self.path, self.protocol];
        if self.malformed || foreign.iter().any(Option::is_some) {
            return Err(Malformed);
        }
        Ok(ResponseHead { status, headers: self.headers })
    }
}

// === impl RequestHead ===

impl RequestHead {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        hpack::encode(b":method", self.method.as_str().as_bytes(), out);
        if let Some(authority) = &self.authority {
            hpack::encode(b":authority", authority.as_str().as_bytes(), out);
        }
        encode_headers(&self.headers, out);
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        hpack::encode(b":status", self.status.as_str().as_bytes(), out);
        encode_headers(&self.headers, out);
    }
}

fn encode_headers(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        hpack::encode(name.as_str().as_bytes(), value.as_bytes(), out);
    }
}
