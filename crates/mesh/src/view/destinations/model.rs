//! What a waypoint does with endpoints, ready to be done.

use std::time::Duration;

use ::http::HeaderName;

use super::Nearness;

/// How endpoints are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Treatment {
    /// Which of them gets the next request.
    pub balancer: Balancer,
    /// Which of them are near; nothing for what the Service says itself.
    pub nearness: Option<Nearness>,
    /// How much they get at once.
    pub limits: Limits,
    /// When one of them gets nothing for a while.
    pub outliers: Option<Outliers>,
    /// What is spoken to them.
    pub http: UpstreamHttp,
}

/// Which endpoint gets the next request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balancer {
    /// The less busy of two.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one that this value is assigned to; any for a request without it.
    Hash(HashBy),
}

/// What requests are assigned to endpoints by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(Box<str>),
    /// The value of a parameter.
    Query(Box<str>),
    /// The client's address.
    Source,
}

/// How much endpoints get at once: all of a service's port, or of a subset's, together. Nothing for no bound but the
/// waypoint's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: Option<u32>,
    /// How long reaching an endpoint may take.
    pub connect_timeout: Option<Duration>,
    /// How long a connection may last.
    pub connection_duration: Option<Duration>,
    /// How long a connection that isn't HTTP may be silent; nothing inside for ever.
    pub tcp_idle_timeout: Option<Option<Duration>>,
    /// Requests that wait for a connection.
    pub pending_requests: Option<u32>,
    /// Requests in flight.
    pub requests: Option<u32>,
    /// Requests on one connection, one after the other.
    pub requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub retries: Option<u32>,
    /// How long an HTTP connection without a request is kept; nothing inside for ever.
    pub http_idle_timeout: Option<Option<Duration>>,
}

/// When an endpoint gets nothing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// So many answers 5xx in a row.
    pub errors: Option<u32>,
    /// So many answers 502, 503 or 504 in a row.
    pub gateway_errors: Option<u32>,
    /// So many failures to reach it in a row, counted apart; nothing if they count as answers 503.
    pub unreachable: Option<u32>,
    /// How often it is looked at whether it may come back.
    pub interval: Duration,
    /// How long it gets nothing, times how often that has happened.
    pub base: Duration,
    /// At most this part of the endpoints is left out, in percent.
    pub most_percent: u8,
    /// Below this part of endpoints that aren't left out, in percent, none is.
    pub least_percent: u8,
}

/// What is spoken to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHttp {
    /// What the port says.
    #[default]
    Port,
    /// What the client speaks.
    Client,
    /// HTTP/2.
    Http2,
}
