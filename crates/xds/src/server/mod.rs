//! The other end of [`crate::client`] and [`crate::ca`]: discovery and certificates over gRPC
//! (`spec/control-plane.md` 4.6, 6).
//!
//! Who may ask for what is the caller's to say ([`Authorize`]); what there is to give is [`Resources`] and a
//! [`ambit_identity::Ca`]. A client that reads slowly costs no memory: its changes wait as a number (the last revision it
//! was told) and are folded into one response when it reads again.

mod authorize;
mod certificates;
mod discovery;
mod resources;
mod serve;
mod subscription;

pub use authorize::{Authorize, Denied, Peer};
pub use resources::Resources;
pub(crate) use subscription::Stream as SubscriptionStream;

use std::sync::Arc;

use ambit_identity::Ca;
use rustls::ServerConfig;

/// What a server serves.
#[derive(Clone)]
pub struct Server {
    authorize: Arc<dyn Authorize>,
    tls: Option<Arc<ServerConfig>>,
    resources: Option<Arc<Resources>>,
    ca: Option<Arc<Ca>>,
}

// === impl Server ===

impl Server {
    /// A server of nothing, over plain text.
    #[must_use]
    pub fn new(authorize: Arc<dyn Authorize>) -> Self {
        Self { authorize, tls: None, resources: None, ca: None }
    }

    /// Speaks TLS by this configuration, with `h2` as its only protocol. A client's certificate is what
    /// [`Peer::identity`] says, so the configuration must verify clients if it asks for their certificates.
    #[must_use]
    pub fn with_tls(mut self, config: Arc<ServerConfig>) -> Self {
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        self.tls = Some(Arc::new(config));
        self
    }

    /// Serves these resources by delta ADS.
    #[must_use]
    pub fn with_resources(mut self, resources: Arc<Resources>) -> Self {
        self.resources = Some(resources);
        self
    }

    /// Signs certificates with this CA.
    #[must_use]
    pub fn with_ca(mut self, ca: Arc<Ca>) -> Self {
        self.ca = Some(ca);
        self
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("tls", &self.tls.is_some())
            .field("resources", &self.resources.is_some())
            .field("ca", &self.ca.is_some())
            .finish_non_exhaustive()
    }
}
