//! The decision record, one JSON line per request or refused connection.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::SystemTime};

use ambit_api::SpiffeId;
use ambit_policy::{Decision, PolicyName, Verdict};
use serde::{Serialize, Serializer};

use crate::{exchange::Exchange, notes::Notes};

/// What was decided about one request or connection, and why.
#[derive(Clone, Debug, Serialize)]
pub struct DecisionRecord {
    /// When the request or connection arrived (RFC 3339, UTC, microseconds).
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// Which part of the mesh decided.
    pub enforcer: Enforcer,
    /// Who asked.
    pub source: Source,
    /// What was asked for.
    pub destination: Destination,
    /// `HTTP/1.1`, `HTTP/2` or `TCP`.
    pub protocol: &'static str,
    /// HTTP method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Cow<'static, str>>,
    /// HTTP request target as sent, without its query (a query may hold secrets).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP status sent to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The outcome.
    pub verdict: Verdict,
    /// The policy that decided, `namespace/name`.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Index of the deciding rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// One line in plain words.
    pub reason: Arc<str>,
    /// Where the time went.
    pub durations: Durations,
    /// What a connection is and did in all; only the node proxy says it. A refusal without it came before anything was
    /// known of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Box<ConnectionFacts>>,
    /// What else policies had to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<Box<Notes>>,
    /// What came of it in all, for those who want to know; only waypoints say it. The decision was recorded before.
    #[serde(skip)]
    pub exchange: Option<Box<Exchange>>,
}

/// What a connection is and did in all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectionFacts {
    /// It was just opened; otherwise it has ended.
    pub opened: bool,
    /// Cluster of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_cluster: Option<Arc<str>>,
    /// Cluster of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_cluster: Option<Arc<str>>,
    /// Where the connection went, or where it came in: with HBONE, the tunnel's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// With HBONE: what the tunnel carries it to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hbone_address: Option<Arc<str>>,
    /// Fully qualified name of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_hostname: Option<Arc<str>>,
    /// The server's identity, as TLS proved it.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub destination_identity: Option<SpiffeId>,
    /// Bytes that the server sent.
    pub sent_bytes: u64,
    /// Bytes that the client sent.
    pub received_bytes: u64,
    /// How long it was open, in milliseconds.
    pub duration_ms: u64,
    /// Why it ended otherwise than well, unless the record's reason says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<str>>,
    /// Another part of the mesh decided about the connection, and has recorded it with what it knows.
    #[serde(skip)]
    pub decided_elsewhere: bool,
}

/// The part of the mesh that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Enforcer {
    /// The client's node proxy: it couldn't find a safe way to the destination.
    ZtunnelOutbound,
    /// The destination's node proxy, by L4 policy or because the destination can't be reached.
    ZtunnelInbound,
    /// The destination's node proxy: a port that only a waypoint may reach.
    WaypointGuard,
    /// A waypoint, `namespace/name`.
    Waypoint {
        /// `namespace/name` of the Gateway.
        name: Arc<str>,
    },
}

/// Who asked.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Source {
    /// `namespace/pod`, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// The authenticated identity.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// Address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Destination {
    /// `namespace/service`, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    /// `namespace/pod`, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Address and port the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// Where the time went, in microseconds; a part that didn't happen is left out.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Durations {
    /// Judging the policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_us: Option<u64>,
    /// Reaching the next hop: TCP, TLS and CONNECT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// From the request's forwarding to the response's headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_us: Option<u64>,
    /// From arrival to the response's headers or the refusal.
    pub total_us: u64,
}

impl DecisionRecord {
    /// A record of this decision with the rest to be filled in.
    #[must_use]
    pub fn new(
        enforcer: Enforcer,
        source: Source,
        destination: Destination,
        protocol: &'static str,
        decision: &Decision,
    ) -> Self {
        Self {
            time: SystemTime::now(),
            enforcer,
            source,
            destination,
            protocol,
            method: None,
            path: None,
            status: None,
            verdict: decision.verdict,
            policy: decision.policy.clone(),
            rule: decision.rule,
            reason: Arc::clone(&decision.reason),
            durations: Durations::default(),
            connection: None,
            notes: None,
            exchange: None,
        }
    }

    /// True for the record that tells of a decision. The others tell how a connection ended that was let in before, that a
    /// client's node proxy let one go, or what another part of the mesh has told itself.
    #[must_use]
    pub fn announces_decision(&self) -> bool {
        match self.connection.as_deref() {
            None => self.exchange.is_none(),
            Some(connection) if connection.decided_elsewhere => false,
            Some(connection) if connection.opened => self.enforcer != Enforcer::ZtunnelOutbound,
            Some(_) => self.verdict == Verdict::Deny,
        }
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let text = time::OffsetDateTime::from(*time).format(format).map_err(serde::ser::Error::custom)?;
    serializer.serialize_str(&text)
}

pub(crate) fn display<T: std::fmt::Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
