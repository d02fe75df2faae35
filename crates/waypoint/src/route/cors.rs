//! The CORS filter: what pages of other origins may do (the Fetch standard's CORS protocol). Policies come first: a
//! preflight that they deny is denied.

use ::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use ambit_mesh::view::routes::Cors;

use crate::{request::Checked, respond, upstream::Body};

/// A request, seen as one from a page of some origin.
pub(super) struct Crossing<'a> {
    cors: &'a Cors,
    /// The origin, if it is admitted.
    admitted: Option<HeaderValue>,
    /// The method and headers that a preflight asks for.
    asks: Option<(HeaderValue, Option<HeaderValue>)>,
}

// === impl Crossing ===

impl<'a> Crossing<'a> {
    pub(super) fn of(cors: &'a Cors, checked: &Checked) -> Self {
        let origin = checked.headers.get(header::ORIGIN);
        let admits = |origin: &&HeaderValue| origin.to_str().is_ok_and(|origin| cors.origins.admit(origin));
        let method = checked.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = checked.method == Method::OPTIONS && origin.is_some();
        let headers = || checked.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        Self {
            cors,
            admitted: origin.filter(admits).cloned(),
            asks: method.filter(|_| preflight).map(|method| (method.clone(), headers())),
        }
    }

    /// The answer to a preflight, which no backend sees. For an origin that isn't admitted it says nothing, which browsers
    /// take for a no.
    pub(super) fn preflight(&self) -> Option<Response<Body>> {
        let (method, wanted) = self.asks.as_ref()?;
        let mut response = Response::new(respond::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        self.apply(headers);
        headers.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
        if self.admitted.is_some() {
            // Written out where `*` is meant: with credentials browsers take that for a name.
            let mut say = |name, value: Option<HeaderValue>| {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    headers.insert(name, value);
                }
            };
            let methods = self.cors.methods.clone().unwrap_or_else(|| method.clone());
            say(header::ACCESS_CONTROL_ALLOW_METHODS, Some(methods));
            let allowed = self.cors.headers.clone().or_else(|| wanted.clone());
            say(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
            say(header::ACCESS_CONTROL_MAX_AGE, Some(self.cors.max_age.clone()));
        }
        Some(response)
    }

    /// Puts the filter's word in the place of the backend's.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        let varies = !self.cors.origins.any || self.cors.credentials;
        if varies {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = &self.admitted else { return };
        let origin = if varies { origin.clone() } else { HeaderValue::from_static("*") };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.cors.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.cors.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}
