//! The routes of a waypoint's services, compiled: found by hashing and comparing, without a copy of anything.

mod compile;
mod http;
mod model;
mod stream;

use std::{collections::HashMap, sync::Arc};

use super::ServiceKey;

pub(super) use self::compile::compile;
pub use self::{
    http::{HttpTable, Matched, Matches, RequestLine},
    model::{
        Backend, BackendService, Cors, DEFAULT_BACKOFF, DEFAULT_RETRIES, Filters, HeaderEdits, HttpRule, Mirror,
        Origins, PathEdit, Redirect, Retry, Rewrite, StreamRule,
    },
    stream::TlsTable,
};

/// Routes by the service that they are attached to. A service without routes isn't here.
pub type Routes = HashMap<ServiceKey, Arc<ServiceRoutes>>;

/// The routes of one service.
#[derive(Debug, Default)]
pub struct ServiceRoutes {
    /// Of the service's own namespace.
    producer: Ports,
    /// Of other namespaces: each for clients of its own.
    consumers: HashMap<Arc<str>, Ports>,
}

/// Routes by port.
#[derive(Debug, Default)]
struct Ports {
    by_port: HashMap<u16, PortRoutes>,
    /// Of the ports that no route names.
    others: PortRoutes,
}

/// The routes of one port.
#[derive(Debug, Default)]
struct PortRoutes {
    http: Option<Arc<HttpTable>>,
    tls: Option<Arc<TlsTable>>,
    tcp: Option<Arc<StreamRule>>,
}

// === impl ServiceRoutes ===

impl ServiceRoutes {
    /// What is done with HTTP requests of a client of this namespace to this port; nothing if no route says.
    #[must_use]
    pub fn http(&self, client_namespace: &str, port: u16) -> Option<&Arc<HttpTable>> {
        self.find(client_namespace, port, |routes| routes.http.as_ref())
    }

    /// The same for TLS connections.
    #[must_use]
    pub fn tls(&self, client_namespace: &str, port: u16) -> Option<&Arc<TlsTable>> {
        self.find(client_namespace, port, |routes| routes.tls.as_ref())
    }

    /// The same for any connections.
    #[must_use]
    pub fn tcp(&self, client_namespace: &str, port: u16) -> Option<&Arc<StreamRule>> {
        self.find(client_namespace, port, |routes| routes.tcp.as_ref())
    }

    /// The consumer's routes where there are some, else the producer's.
    fn find<'a, T>(&'a self, client: &str, port: u16, get: fn(&'a PortRoutes) -> Option<&'a T>) -> Option<&'a T> {
        let own = self.consumers.get(client).and_then(|ports| get(ports.of(port)));
        own.or_else(|| get(self.producer.of(port)))
    }
}

// === impl Ports ===

impl Ports {
    fn of(&self, port: u16) -> &PortRoutes {
        self.by_port.get(&port).unwrap_or(&self.others)
    }
}
