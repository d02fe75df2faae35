//! What goes wrong on the way to an endpoint.

use std::net::{IpAddr, SocketAddr};

/// Why no endpoint answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is none to try.
    #[error("service `{service}` has no healthy endpoint for port {port}")]
    NoEndpoint {
        /// `namespace/name`.
        service: String,
        /// The service's port.
        port: u16,
    },
    /// The workload that was asked for by its address has it no longer.
    #[error("workload `{workload}` no longer has address `{address}`")]
    Gone {
        /// `namespace/name`.
        workload: String,
        /// Its address until now.
        address: IpAddr,
    },
    /// It can't be reached.
    #[error("endpoint `{address}` can't be reached: {reason}")]
    Connect {
        /// Pod address and target port.
        address: SocketAddr,
        /// What failed.
        reason: String,
    },
    /// Nothing may go there.
    #[error("{reason}")]
    Closed {
        /// Which rule says so, and why.
        reason: String,
    },
    /// As much goes there as may.
    #[error("service `{service}` has as many {what} as its DestinationRule allows")]
    Overflow {
        /// Full name.
        service: String,
        /// Of what.
        what: &'static str,
    },
    /// Routes lead nowhere.
    #[error("{reason}")]
    Route {
        /// Which, and why.
        reason: String,
    },
    /// The client didn't send its request to the end, or not in a form that can be read.
    #[error("the request's body can't be read: {reason}")]
    Request {
        /// What failed.
        reason: String,
    },
    /// It was reached and gave no answer.
    #[error("endpoint `{address}` gave no answer: {reason}")]
    Exchange {
        /// Pod address and target port.
        address: SocketAddr,
        /// What failed.
        reason: String,
        /// It said that it has done nothing.
        refused: bool,
        /// How it broke off.
        broken: Broken,
    },
}

/// How an exchange with an endpoint broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection ended.
    Closed,
    /// The endpoint reset the stream.
    Reset,
    /// What it sent can't be read.
    Unreadable,
}

/// True if the endpoint refused an HTTP/2 stream before it looked at it.
pub(super) fn is_refused(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.and_then(h2::Error::reason) == Some(h2::Reason::REFUSED_STREAM)
}

/// An error with all its causes: hyper's own text leaves them out.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

// === impl Error ===

impl Error {
    /// Envoy's word for it (`response_flags`).
    pub(crate) fn flag(&self) -> &'static str {
        match self {
            Self::NoEndpoint { .. } | Self::Gone { .. } => "UH",
            Self::Connect { .. } => "UF",
            Self::Closed { .. } => "NC",
            Self::Overflow { .. } => "UO",
            Self::Route { .. } => "NR",
            Self::Request { .. } => "DC",
            Self::Exchange { broken, .. } => broken.flag(),
        }
    }
}

// === impl Broken ===

impl Broken {
    pub(crate) fn of(error: &hyper::Error) -> Self {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
        match cause {
            Some(cause) if cause.is_reset() && cause.is_remote() => Self::Reset,
            Some(cause) if cause.is_library() => Self::Unreadable,
            None if error.is_parse() => Self::Unreadable,
            _ => Self::Closed,
        }
    }

    /// Envoy's word for it.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Closed => "UC",
            Self::Reset => "UR",
            Self::Unreadable => "UPE",
        }
    }
}
