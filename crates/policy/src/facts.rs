//! What a decision may look at.

use std::{fmt, net::IpAddr, sync::Arc};

use ambit_api::SpiffeId;

/// Facts that hold for a whole connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// The authenticated peer; nothing for plaintext, or when its certificate names no identity.
    pub peer: Option<Peer>,
    /// Address of the client (not of a waypoint in between). IPv4-mapped IPv6 is folded to IPv4.
    pub source_ip: IpAddr,
    /// Address of the client behind trusted proxies; nothing if it is `source_ip`. A request whose trusted proxies name
    /// another client than the connection's needs a [`crate::Residual`] of its own.
    pub remote_ip: Option<IpAddr>,
    /// Address the client asked for.
    pub destination_ip: IpAddr,
    /// Port the client asked for: the service port at a waypoint, the container port at a node proxy.
    pub destination_port: u16,
    /// What is known of the TLS server name. Only [`crate::Residual::decide_connection`] looks at it: where HTTP is
    /// seen, TLS has ended.
    pub sni: Sni,
}

/// An authenticated peer. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer(Arc<Identity>);

#[derive(PartialEq, Eq)]
struct Identity {
    /// The URI without `spiffe://`.
    principal: Box<str>,
    id: Option<SpiffeId>,
}

/// The server name of a TLS handshake, as sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sni {
    /// Nobody has looked: what a condition on it would say is open.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// This one.
    Name(Arc<str>),
}

/// Facts of one HTTP request. At L4 there are none.
#[derive(Clone, Copy)]
pub struct RequestFacts<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// The request target as sent, in origin form, query included, not normalised: `/v1/traces?x=1`.
    pub path: &'a str,
    /// `:authority` or `Host`, as sent, port included.
    pub authority: &'a str,
    /// How the request came.
    pub version: HttpVersion,
    /// The header lines, without pseudo-headers and without a verified token's `Authorization`.
    pub headers: &'a dyn HeaderLines,
    /// What a verified token says; nothing without one.
    pub claims: Option<&'a Claims>,
    /// Names of the providers that have been asked about this request and allow it (CUSTOM policies).
    pub approved_by: &'a [&'a str],
    /// Which policies are looked at.
    pub stage: Stage,
}

/// Which policies are looked at. A provider may change a request before the rest is judged, so an enforcement point that
/// asks them judges twice: the request as it was sent, then the request as it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// All of them.
    #[default]
    All,
    /// CUSTOM ones.
    Custom,
    /// All but CUSTOM ones.
    AfterCustom,
}

/// The claims of a verified token, `iss`, `sub`, `aud` and `azp` among them.
pub type Claims = serde_json::Map<String, serde_json::Value>;

/// How a request came; cookies are one header line in HTTP/2, however many were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1 or 1.0.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
}

/// The header lines of a request.
pub trait HeaderLines {
    /// Calls `each` with the value of each line of this name, in the order sent. `name` is in lower case; lines are
    /// found whatever their case.
    fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

/// No header lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHeaders;

// === impl ConnectionFacts ===

impl ConnectionFacts {
    /// A connection of nobody in particular.
    #[must_use]
    pub fn new(source_ip: IpAddr, destination_ip: IpAddr, destination_port: u16) -> Self {
        Self { peer: None, source_ip, remote_ip: None, destination_ip, destination_port, sni: Sni::default() }
    }

    /// The same with this peer.
    #[must_use]
    pub fn with_peer(self, peer: impl Into<Peer>) -> Self {
        Self { peer: Some(peer.into()), ..self }
    }

    /// The same with this peer, if there is one.
    #[must_use]
    pub fn with_identity(self, identity: Option<SpiffeId>) -> Self {
        Self { peer: identity.map(Peer::from), ..self }
    }

    /// The same with this client behind trusted proxies.
    #[must_use]
    pub fn with_remote_ip(self, remote_ip: IpAddr) -> Self {
        Self { remote_ip: Some(remote_ip), ..self }
    }

    /// The same with this TLS server name.
    #[must_use]
    pub fn with_sni(self, sni: Sni) -> Self {
        Self { sni, ..self }
    }

    /// Address of the client behind trusted proxies.
    #[must_use]
    pub fn remote_ip(&self) -> IpAddr {
        self.remote_ip.unwrap_or(self.source_ip)
    }
}

// === impl Peer ===

const SCHEME: &str = "spiffe://";

impl Peer {
    /// A peer whose certificate names this URI. One that isn't a workload's identity still counts as what it is
    /// wherever that denies; one of another scheme is as good as none.
    #[must_use]
    pub fn new(uri: &str) -> Option<Self> {
        let principal = uri.strip_prefix(SCHEME)?;
        Some(Self(Arc::new(Identity { principal: principal.into(), id: uri.parse().ok() })))
    }

    /// The workload identity; nothing if the name has another shape.
    #[must_use]
    pub fn id(&self) -> Option<&SpiffeId> {
        self.0.id.as_ref()
    }

    /// The name as policies write it: without `spiffe://`.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.0.principal
    }
}

impl From<SpiffeId> for Peer {
    fn from(id: SpiffeId) -> Self {
        Self(Arc::new(Identity { principal: id.principal().into(), id: Some(id) }))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.0.principal)
    }
}

// === impl RequestFacts ===

impl<'a> RequestFacts<'a> {
    /// An HTTP/1.1 request without headers or token.
    #[must_use]
    pub fn new(method: &'a str, path: &'a str, authority: &'a str) -> Self {
        Self {
            method,
            path,
            authority,
            version: HttpVersion::default(),
            headers: &NoHeaders,
            claims: None,
            approved_by: &[],
            stage: Stage::All,
        }
    }

    /// The same with these header lines.
    #[must_use]
    pub fn with_headers(self, headers: &'a dyn HeaderLines) -> Self {
        Self { headers, ..self }
    }

    /// The same with this verified token.
    #[must_use]
    pub fn with_claims(self, claims: Option<&'a Claims>) -> Self {
        Self { claims, ..self }
    }

    /// The same, come by this version.
    #[must_use]
    pub fn with_version(self, version: HttpVersion) -> Self {
        Self { version, ..self }
    }

    /// The same, allowed by these providers.
    #[must_use]
    pub fn with_approvals(self, approved_by: &'a [&'a str]) -> Self {
        Self { approved_by, ..self }
    }

    /// The same, for these policies.
    #[must_use]
    pub fn with_stage(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

impl fmt::Debug for RequestFacts<'_> {
    /// Headers and claims may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestFacts")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("authority", &self.authority)
            .field("version", &self.version)
            .field("approved_by", &self.approved_by)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

// === impl HeaderLines ===

impl HeaderLines for NoHeaders {
    fn lines(&self, _name: &str, _each: &mut dyn FnMut(&[u8])) {}
}

impl<N: AsRef<str>, V: AsRef<[u8]>> HeaderLines for &[(N, V)] {
    fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.iter().filter(|(known, _)| known.as_ref().eq_ignore_ascii_case(name)).for_each(|(_, v)| each(v.as_ref()));
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> HeaderLines for Vec<(N, V)> {
    fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.as_slice().lines(name, each);
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>, const LINES: usize> HeaderLines for [(N, V); LINES] {
    fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.as_slice().lines(name, each);
    }
}
