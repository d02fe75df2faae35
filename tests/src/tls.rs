//! TLS that only passes through a mesh: its own certificate, and a client that believes it.

use std::{io::Write, net::TcpStream, sync::Arc};

use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;

use crate::{Place, http1};

/// A self-signed certificate for three names: `one.example`, `two.example` and `other.test`.
#[derive(Debug)]
pub struct Certificate(CertificateDer<'static>);

// === impl Certificate ===

impl Certificate {
    /// Makes one; it and its key lie in `cert.der` and `key.der` of the place.
    pub fn make(place: &Place) -> Self {
        let key = KeyPair::generate().expect("a key");
        let names = ["one.example", "two.example", "other.test"].map(str::to_owned);
        let certificate = CertificateParams::new(names).expect("names").self_signed(&key).expect("a certificate");
        place.write_bytes("cert.der", certificate.der());
        place.write_bytes("key.der", key.serialized_der());
        Self(certificate.der().clone())
    }

    /// Asks the server of this name for its greeting and for one line back; an error if the connection ends before.
    pub fn greet(&self, stream: TcpStream, server: &str) -> Result<(String, String), std::io::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.clone()).expect("a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = server.to_owned().try_into().expect("a name");
        let client = ClientConnection::new(Arc::new(config), server).expect("a client");
        let mut stream = StreamOwned::new(client, stream);
        stream.write_all(b"are you there?\n")?;
        let greeting = http1::line(&mut stream);
        Ok((greeting, http1::line(&mut stream)))
    }
}
