//! Mutual TLS 1.3 as the mesh speaks it, with the library's own defaults otherwise.

use std::{io, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

const NAME: &str = "localhost";

/// The configurations of both ends.
#[derive(Clone)]
pub(super) struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

// === impl Ends ===

impl Ends {
    /// ECDSA P-256 certificates directly below the root, AES-256-GCM, and this key exchange only.
    pub(super) fn new(exchange: &'static dyn SupportedKxGroup) -> io::Result<Self> {
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![exchange],
            ..aws_lc_rs::default_provider()
        };
        let provider = Arc::new(provider);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut authority = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.self_signed(&key).map_err(io::Error::other)?;
        let issuer = Issuer::new(authority, key);
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).map_err(io::Error::other)?;
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(io::Error::other)?;
        let (chain, key) = leaf(&issuer)?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|server| server.with_client_cert_verifier(verifier).with_single_cert(chain, key));
        let (chain, key) = leaf(&issuer)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|client| client.with_root_certificates(roots).with_client_auth_cert(chain, key));
        let (mut server, mut client) = (server.map_err(io::Error::other)?, client.map_err(io::Error::other)?);
        // Node proxies don't resume sessions.
        server.send_tls13_tickets = 0;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    pub(super) fn client(&self) -> io::Result<ClientConnection> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        ClientConnection::new(Arc::clone(&self.client), name).map_err(io::Error::other)
    }

    pub(super) fn server(&self) -> io::Result<ServerConnection> {
        ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)
    }

    /// A client and a server that have shaken hands in memory.
    pub(super) fn established(&self) -> io::Result<(ClientConnection, ServerConnection)> {
        let (mut client, mut server) = (self.client()?, self.server()?);
        let mut wire = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            while client.wants_write() {
                client.write_tls(&mut wire)?;
            }
            feed(&mut wire, &mut server)?;
            while server.wants_write() {
                server.write_tls(&mut wire)?;
            }
            feed(&mut wire, &mut client)?;
        }
        Ok((client, server))
    }
}

/// Gives one end all that the other has written.
fn feed<Data>(
    wire: &mut Vec<u8>,
    end: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<Data>>,
) -> io::Result<()> {
    let mut bytes = wire.as_slice();
    while !bytes.is_empty() {
        end.read_tls(&mut bytes)?;
        end.process_new_packets().map_err(io::Error::other)?;
    }
    wire.clear();
    Ok(())
}

fn leaf(issuer: &Issuer<'_, KeyPair>) -> io::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let params = CertificateParams::new(vec![NAME.to_owned()]).map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, issuer).map_err(io::Error::other)?;
    Ok((vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
}
