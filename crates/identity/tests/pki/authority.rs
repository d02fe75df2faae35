//! A certification authority without rules: it signs any name, any validity, and revocation lists.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use ambit_identity::{
    BoxFuture, CertificateRequest, CertificateSource, CertificateStore, Clock, IssuedChain, KeyExchange, SourceError,
    SpiffeId, SystemClock, Trust, WorkloadCertificate, certificate_pem,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::prelude::{FromDer, X509Certificate};

pub type Client = client::TlsStream<DuplexStream>;
pub type Server = server::TlsStream<DuplexStream>;

pub struct Authority {
    pub certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// From this one up, without the root; empty for a root.
    intermediates: Vec<CertificateDer<'static>>,
    pub root: CertificateDer<'static>,
}

impl Authority {
    pub fn root(name: &str) -> Arc<Self> {
        let (params, key) = ca_params(name);
        let certificate = params.self_signed(&key).expect("signed").der().clone();
        let root = certificate.clone();
        Arc::new(Self { certificate, issuer: Issuer::new(params, key), intermediates: Vec::new(), root })
    }

    pub fn intermediate(&self, name: &str) -> Arc<Self> {
        let (params, key) = ca_params(name);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        let mut intermediates = vec![certificate.clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Arc::new(Self { certificate, issuer: Issuer::new(params, key), intermediates, root: self.root.clone() })
    }

    /// A chain over `key` with `uris`, as `edit` leaves it.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        uris: &[&str],
        edit: impl FnOnce(&mut CertificateParams),
    ) -> IssuedChain {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| uri_name(uri)).collect();
        edit(&mut params);
        let leaf = params.signed_by(key, &self.issuer).expect("signed");
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        IssuedChain { chain, roots: vec![self.root.clone()] }
    }

    /// The certificate of `id` as the store would make it.
    pub fn workload(&self, id: &SpiffeId, trust: &Arc<Trust>) -> WorkloadCertificate {
        self.workload_until(id, trust, clock(), None)
    }

    /// The same, for a machine with `clock`; valid until `until`, or for very long.
    pub fn workload_until(
        &self,
        id: &SpiffeId,
        trust: &Arc<Trust>,
        clock: Arc<dyn Clock>,
        until: Option<SystemTime>,
    ) -> WorkloadCertificate {
        let request = CertificateRequest::new(id).expect("a key");
        let csr = CertificateSigningRequestParams::from_pem(request.pem()).expect("a request");
        let issued = self.sign(&csr.public_key, &[&id.to_string()], |params| {
            params.not_after = until.map_or(params.not_after, Into::into);
        });
        request.accept(issued, trust, &clock).expect("accepted")
    }

    /// A certificate with several names, for a machine that trusts this authority.
    pub fn sign_for(&self, id: &SpiffeId, uris: &[&str]) -> WorkloadCertificate {
        let request = CertificateRequest::new(id).expect("a key");
        let csr = CertificateSigningRequestParams::from_pem(request.pem()).expect("a request");
        let issued = self.sign(&csr.public_key, uris, |_| {});
        request.accept(issued, &Trust::new(KeyExchange::default()), &clock()).expect("accepted")
    }

    /// A revocation list, DER, that names `revoked` and was due for its successor at `next_update` days from now.
    pub fn crl(&self, revoked: &[&CertificateDer<'_>], next_update_days: i64) -> Vec<u8> {
        let now = time::OffsetDateTime::now_utc();
        let entry = |certificate: &&CertificateDer<'_>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&serial(certificate)),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - time::Duration::days(30),
            next_update: now + time::Duration::days(next_update_days),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed").der().to_vec()
    }
}

impl CertificateSource for Authority {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        let csr = CertificateSigningRequestParams::from_pem(&csr_pem).expect("a request");
        let issued = self.sign(&csr.public_key, &[&id.to_string()], |_| {});
        Box::pin(std::future::ready(Ok(issued)))
    }
}

/// A source whose authority and bundle a test changes.
pub struct Changing(Mutex<(Arc<Authority>, Vec<CertificateDer<'static>>)>);

impl Changing {
    pub fn new(authority: &Arc<Authority>, bundle: &[&Arc<Authority>]) -> Arc<Self> {
        let changing = Arc::new(Self(Mutex::new((Arc::clone(authority), Vec::new()))));
        changing.set(authority, bundle);
        changing
    }

    pub fn set(&self, authority: &Arc<Authority>, bundle: &[&Arc<Authority>]) {
        let bundle = bundle.iter().map(|authority| authority.root.clone()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Arc::clone(authority), bundle);
    }
}

impl CertificateSource for Changing {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        let (authority, roots) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let id = id.clone();
        Box::pin(async move {
            let issued = authority.certificate(&id, csr_pem).await?;
            Ok(IssuedChain { roots, ..issued })
        })
    }
}

fn ca_params(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params, KeyPair::generate().expect("a key"))
}

pub fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("ASCII"))
}

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

pub fn store(source: &Arc<impl CertificateSource + 'static>) -> Arc<CertificateStore> {
    CertificateStore::new(Arc::clone(source) as _, clock())
}

pub fn serial(certificate: &CertificateDer<'_>) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(certificate).expect("a certificate");
    certificate.tbs_certificate.serial.to_bytes_be()
}

/// The answer of a CA over the network: its parts.
pub fn response(issued: &IssuedChain) -> Vec<String> {
    let mut parts: Vec<String> = issued.chain.iter().map(|der| certificate_pem(der)).collect();
    parts.push(issued.roots.iter().map(|der| certificate_pem(der)).collect());
    parts
}

/// Both outcomes of one handshake. The client writes a byte and reads one, since in TLS 1.3 it learns of the server's
/// refusal only then.
pub async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<Client>, io::Result<Server>) {
    handshake_with("nobody.invalid", client, server).await
}

/// With a server that the client calls by this name or address.
pub async fn handshake_with(
    name: &str,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<Client>, io::Result<Server>) {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"?").await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    let both = async { tokio::join!(connect, accept) };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("the handshake ends")
}

pub fn refused<T>(outcome: io::Result<T>, needle: &str) {
    let Err(error) = outcome else { panic!("expected a refusal with `{needle}`") };
    assert!(error.to_string().contains(needle), "`{error}` lacks `{needle}`");
}

/// Whether `server` serves `client`, which expects it; if not, what the end that refuses says.
pub async fn meet(client: &WorkloadCertificate, server: &WorkloadCertificate) -> Result<(), String> {
    let config = client.client_config(&[server.identity().clone()]);
    let (near, far) = handshake(config, server.server_config()).await;
    let errors = [near.err(), far.err()].into_iter().flatten().map(|error| error.to_string());
    let mut errors: Vec<_> = errors.collect();
    errors.sort_by_key(|error| error.contains("received fatal alert"));
    errors.into_iter().next().map_or(Ok(()), Err)
}
