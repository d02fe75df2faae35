//! The headers of a CONNECT and of its answer, as types (`spec/ztunnel.md` 2.5, 2.6).
//!
//! They tell who calls and on whose behalf, for labels and logs. None of them is proof of anything: who the peer is
//! comes from its certificate alone.

use std::{fmt, net::SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};

use crate::limits::{MAX_BAGGAGE_MEMBERS, MAX_CONNECT_HEADER_BYTES, MAX_FORWARDED_ELEMENTS};

/// Where the workload that calls, or that answers, is described.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// The W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The network a call through a network gateway comes from.
pub const X_FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// What a CONNECT says beside its authority. An answer carries the baggage alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// The workload at the sender's end.
    pub baggage: Option<Baggage>,
    /// For whom the tunnel is opened.
    pub forwarded: Option<Forwarded>,
    /// The trace this call is a part of.
    pub trace: Option<TraceParent>,
    /// The network the call comes from; only on the inner CONNECT of a double tunnel.
    pub network: Option<String>,
}

/// A workload as its peers and their metrics know it. An empty field is unknown, and isn't sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: String,
    /// `k8s.namespace.name`.
    pub namespace: String,
    /// `k8s.<kind>.name`: what kind of workload it is, and its name.
    pub workload: Option<(WorkloadKind, String)>,
    /// `service.name`, the canonical name.
    pub service: String,
    /// `service.version`, the canonical revision.
    pub revision: String,
    /// `cloud.region`.
    pub region: String,
    /// `cloud.availability_zone`.
    pub zone: String,
}

/// The kinds of workload that baggage can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    /// `k8s.deployment.name`.
    Deployment,
    /// `k8s.cronjob.name`.
    CronJob,
    /// `k8s.pod.name`.
    Pod,
    /// `k8s.job.name`.
    Job,
}

/// For whom a tunnel is opened (RFC 7239).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The application's address. `None` when it was sent in a form that is no address (`unknown`, `_hidden`).
    pub client: Option<SocketAddr>,
    /// The service the application called, if it called one.
    pub host: Option<String>,
}

/// A position in a trace (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Never zero.
    pub trace_id: u128,
    /// Never zero.
    pub span_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

/// A header that can't be understood, or can't be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header `{header}` is malformed: {reason}")]
pub struct HeaderError {
    /// Its name.
    pub header: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

// === impl ConnectHeaders ===

impl ConnectHeaders {
    /// Reads what is there. Headers of other names are left alone, and so are members of `baggage` of other names.
    ///
    /// # Errors
    /// When one of the headers known here is malformed, doubled or too long; its name and fault are told.
    pub fn parse(headers: &HeaderMap) -> Result<Self, HeaderError> {
        let network = single(headers, &X_FORWARDED_NETWORK, "x-forwarded-network")?;
        if network.is_some_and(|network| network.is_empty()) {
            return Err(fault("x-forwarded-network", "it is empty"));
        }
        Ok(Self {
            baggage: Baggage::of(headers)?,
            forwarded: single(headers, &FORWARDED, "forwarded")?.map(Forwarded::parse).transpose()?,
            trace: single(headers, &TRACEPARENT, "traceparent")?.map(TraceParent::parse).transpose()?,
            network: network.map(str::to_owned),
        })
    }

    /// The headers to send.
    ///
    /// # Errors
    /// When a value can't stand in a header; its name and fault are told.
    pub fn to_map(&self) -> Result<HeaderMap, HeaderError> {
        let mut map = HeaderMap::with_capacity(4);
        if let Some(text) = self.baggage.as_ref().map(ToString::to_string).filter(|text| !text.is_empty()) {
            map.insert(BAGGAGE, value("baggage", &text)?);
        }
        if let Some(forwarded) = &self.forwarded {
            if forwarded.host.as_deref().is_some_and(|host| host.is_empty() || !host.bytes().all(is_token)) {
                return Err(fault("forwarded", "the host is not a name"));
            }
            map.insert(FORWARDED, value("forwarded", &forwarded.to_string())?);
        }
        if let Some(trace) = &self.trace {
            map.insert(TRACEPARENT, value("traceparent", &trace.to_string())?);
        }
        if let Some(network) = &self.network {
            // HTTP/2 knows no space around a value, and an empty one isn't understood.
            if network.is_empty() || network.trim() != network {
                return Err(fault("x-forwarded-network", "it is empty or has space around it"));
            }
            map.insert(X_FORWARDED_NETWORK, value("x-forwarded-network", network)?);
        }
        Ok(map)
    }
}

// === impl Baggage ===

impl Baggage {
    /// Reads the `baggage` of a request or an answer.
    ///
    /// # Errors
    /// When it is malformed or too long.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, HeaderError> {
        let mut baggage = None;
        let (mut members, mut length) = (0, 0);
        for line in headers.get_all(BAGGAGE) {
            let line = text("baggage", line)?;
            length += line.len();
            if length > MAX_CONNECT_HEADER_BYTES {
                return Err(fault("baggage", format!("it is longer than {MAX_CONNECT_HEADER_BYTES} bytes")));
            }
            let baggage: &mut Self = baggage.get_or_insert_default();
            for member in line.split(',').map(str::trim).filter(|member| !member.is_empty()) {
                members += 1;
                if members > MAX_BAGGAGE_MEMBERS {
                    return Err(fault("baggage", format!("it has more than {MAX_BAGGAGE_MEMBERS} members")));
                }
                // Properties after a semicolon are not ours.
                let member = member.split(';').next().unwrap_or_default();
                let (key, value) = member
                    .split_once('=')
                    .ok_or_else(|| fault("baggage", format!("member `{}` has no `=`", member.escape_debug())))?;
                baggage.set(key.trim(), value.trim());
            }
        }
        Ok(baggage)
    }

    fn set(&mut self, key: &str, value: &str) {
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.revision,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let kind = key.strip_prefix("k8s.").and_then(|key| key.strip_suffix(".name"));
                if let Some(kind) = kind.and_then(WorkloadKind::parse) {
                    self.workload = Some((kind, value.to_owned()));
                }
                return;
            }
        };
        value.clone_into(field);
    }
}

/// The header's value. What can't stand in it (an empty text, or one with a comma, a semicolon or a control character)
/// is left out: the label is unknown at the other end then.
impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut member = |prefix: &str, key: &str, suffix: &str, value: &str| {
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic() && !b",;".contains(&byte)) {
                return Ok(());
            }
            let comma = if std::mem::replace(&mut first, false) { "" } else { "," };
            write!(f, "{comma}{prefix}{key}{suffix}={value}")
        };
        member("", "k8s.cluster.name", "", &self.cluster)?;
        member("", "k8s.namespace.name", "", &self.namespace)?;
        if let Some((kind, name)) = &self.workload {
            member("k8s.", kind.as_str(), ".name", name)?;
        }
        member("", "service.name", "", &self.service)?;
        member("", "service.version", "", &self.revision)?;
        member("", "cloud.region", "", &self.region)?;
        member("", "cloud.availability_zone", "", &self.zone)
    }
}

// === impl WorkloadKind ===

impl WorkloadKind {
    /// The kind of that name; `None` for a kind that baggage has no word for.
    #[must_use]
    pub fn parse(kind: &str) -> Option<Self> {
        match kind {
            "deployment" => Some(Self::Deployment),
            "cronjob" => Some(Self::CronJob),
            "pod" => Some(Self::Pod),
            "job" => Some(Self::Job),
            _ => None,
        }
    }

    /// Its name in a key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

// === impl Forwarded ===

impl Forwarded {
    /// Reads the header's value. Where several proxies have added an element each, the first is meant: the client.
    fn parse(text: &str) -> Result<Self, HeaderError> {
        let mut elements = split_unquoted(text, b',');
        let first = elements.next().unwrap_or_default();
        if elements.count() >= MAX_FORWARDED_ELEMENTS {
            return Err(fault("forwarded", format!("it has more than {MAX_FORWARDED_ELEMENTS} elements")));
        }
        let mut forwarded = Self::default();
        for pair in split_unquoted(first, b';').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| fault("forwarded", format!("`{}` has no `=`", pair.escape_debug())))?;
            let value = unquote(value.trim())?;
            if key.trim().eq_ignore_ascii_case("for") {
                forwarded.client = value.parse().ok();
            } else if key.trim().eq_ignore_ascii_case("host") {
                forwarded.host = Some(value.to_owned()).filter(|host| !host.is_empty());
            }
        }
        Ok(forwarded)
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            Some(client) => write!(f, "for=\"{client}\"")?,
            None => f.write_str("for=unknown")?,
        }
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

// === impl TraceParent ===

impl TraceParent {
    /// Reads the header's value.
    fn parse(text: &str) -> Result<Self, HeaderError> {
        let bad = || fault("traceparent", "expected `00-<32 hex digits>-<16>-<2>`, neither id all zeros");
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().ok_or_else(bad)?;
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if part.len() != digits || !part.bytes().all(lower) {
                return Err(bad());
            }
            u128::from_str_radix(part, 16).map_err(|_| bad())
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // Later versions may add fields; 255 is no version.
        if version == 0xff || (version == 0 && parts.next().is_some()) || trace_id == 0 || span_id == 0 {
            return Err(bad());
        }
        let narrow = |number: u128| u64::try_from(number).map_err(|_| bad());
        Ok(Self { trace_id, span_id: narrow(span_id)?, flags: u8::try_from(flags).map_err(|_| bad())? })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

fn fault(header: &'static str, reason: impl Into<String>) -> HeaderError {
    HeaderError { header, reason: reason.into() }
}

fn value(header: &'static str, text: &str) -> Result<HeaderValue, HeaderError> {
    if text.len() > MAX_CONNECT_HEADER_BYTES {
        return Err(fault(header, format!("it is longer than {MAX_CONNECT_HEADER_BYTES} bytes")));
    }
    if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err(fault(header, "it has characters that can't stand in a header"));
    }
    HeaderValue::from_str(text).map_err(|error| fault(header, error.to_string()))
}

fn text<'h>(header: &'static str, value: &'h HeaderValue) -> Result<&'h str, HeaderError> {
    if value.len() > MAX_CONNECT_HEADER_BYTES {
        return Err(fault(header, format!("it is longer than {MAX_CONNECT_HEADER_BYTES} bytes")));
    }
    value.to_str().map_err(|_| fault(header, "it is not visible ASCII"))
}

fn single<'h>(headers: &'h HeaderMap, name: &HeaderName, header: &'static str) -> Result<Option<&'h str>, HeaderError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| text(header, value)).transpose()?;
    if values.next().is_some() {
        return Err(fault(header, "it is there more than once"));
    }
    Ok(first)
}

/// Splits at `separator`, except inside double quotes.
fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character: char| {
        quoted ^= character == '"';
        !quoted && character == char::from(separator)
    })
}

fn unquote(text: &str) -> Result<&str, HeaderError> {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\'])),
        None => Some(text).filter(|text| !text.contains('"')),
    }
    .ok_or_else(|| fault("forwarded", "its quotes don't match"))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)
}
