//! TLS 1.3 for the data path. The handshake, and with it every decision about who the peer is, is rustls' own; after it
//! the records are protected here, with the traffic keys that rustls hands out for this purpose (its `kernel`
//! interface, made for TLS in the kernel). That way many records are opened in place per read and sealed in place per
//! write: no byte is copied between TLS and HTTP/2. Key updates go through rustls as well.

use std::sync::Arc;

use ambit_identity::{SpiffeId, WorkloadCertificate};
use rustls::{ClientConfig, ServerConfig};

mod handshake;
mod record;

pub(crate) use handshake::{Established, accept, connect};
pub(crate) use record::{Alert, MAX_PLAINTEXT_BYTES, Opened, RecordError, Records};

/// The certificate's configuration for the accepting side, which lets the traffic keys out.
pub(crate) fn server_config(certificate: &WorkloadCertificate) -> Arc<ServerConfig> {
    let mut config = certificate.server_config();
    if !config.enable_secret_extraction {
        Arc::make_mut(&mut config).enable_secret_extraction = true;
    }
    config
}

/// The certificate's configuration towards one of `expected`, which lets the traffic keys out.
pub(crate) fn client_config(certificate: &WorkloadCertificate, expected: &[SpiffeId]) -> Arc<ClientConfig> {
    let mut config = certificate.client_config(expected);
    if !config.enable_secret_extraction {
        Arc::make_mut(&mut config).enable_secret_extraction = true;
    }
    config
}
