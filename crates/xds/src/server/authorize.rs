//! Who asks, and whether they may.

use std::{fmt, net::SocketAddr, sync::Arc};

use ambit_identity::{BoxFuture, SpiffeId};
use tonic::metadata::MetadataMap;

use crate::{ca::CLUSTER_ID_HEADER, discovery::Node};

/// Decides who may ask for what. Called for every stream and every certificate; what it says is not kept.
pub trait Authorize: Send + Sync {
    /// Whether this peer may watch resources as this node.
    fn discovery<'a>(&'a self, peer: &'a Peer, node: &'a Node) -> BoxFuture<'a, Result<(), Denied>>;

    /// The identity to sign for: `impersonated` if this peer may have certificates of it, the peer's own if it asks for no
    /// other.
    fn certificate<'a>(
        &'a self,
        peer: &'a Peer,
        impersonated: Option<&'a SpiffeId>,
    ) -> BoxFuture<'a, Result<SpiffeId, Denied>>;
}

/// Why a peer may not. Logged, and never told to the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// The reason, for the operator.
    pub reason: String,
    /// That it isn't known who the peer is, whatever it asks for.
    pub unauthenticated: bool,
}

/// Who asks.
#[derive(Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The identity in its verified certificate, if it showed one.
    pub identity: Option<SpiffeId>,
    pub(super) metadata: MetadataMap,
}

/// What is known of a peer from its connection alone.
#[derive(Clone, Debug)]
pub(super) struct Connection(pub(super) Arc<(SocketAddr, Option<SpiffeId>)>);

// === impl Denied ===

impl Denied {
    /// The peer may not have what it asks for.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), unauthenticated: false }
    }

    /// It isn't known who the peer is.
    pub fn unauthenticated(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), unauthenticated: true }
    }
}

// === impl Peer ===

impl Peer {
    /// A peer with these headers, as if it had asked.
    #[must_use]
    pub fn new(address: SocketAddr, identity: Option<SpiffeId>, headers: &[(&'static str, &str)]) -> Self {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            // What can't stand in a header doesn't come in one.
            if let Ok(value) = value.parse() {
                metadata.append(*name, value);
            }
        }
        Self { address, identity, metadata }
    }

    /// The peer behind a request.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<Self, tonic::Status> {
        let Connection(known) =
            request.extensions().get::<Connection>().ok_or_else(|| tonic::Status::internal("no connection"))?;
        let (address, identity) = (**known).clone();
        Ok(Self { address, identity, metadata: request.metadata().clone() })
    }

    /// Its bearer token. A second `authorization` header makes it none.
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let value = self.header("authorization")?;
        let (scheme, token) = value.split_once(' ')?;
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    }

    /// The cluster whose token it has, if it says so.
    #[must_use]
    pub fn cluster_id(&self) -> Option<&str> {
        self.header(CLUSTER_ID_HEADER)
    }

    /// A header of its request; nothing if it isn't there exactly once as ASCII.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.metadata.get_all(name).iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { value.to_str().ok() }
    }
}

impl fmt::Debug for Peer {
    /// Without its headers: there may be a token among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("address", &self.address).field("identity", &self.identity).finish_non_exhaustive()
    }
}
