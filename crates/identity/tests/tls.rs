//! Real handshakes between the configurations of two workload certificates.

use std::{io, sync::Arc, time::Duration};

use ambit_identity::{
    BoxFuture, CertificateSource, CertificateStore, IssuedChain, SourceError, SpiffeId, SystemClock,
    WorkloadCertificate, peer_identity,
};
use ambit_testing::{ManualClock, TestMesh, identity};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, ProtocolVersion, ServerConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const DAY: Duration = Duration::from_secs(24 * 3600);

type Client = client::TlsStream<tokio::io::DuplexStream>;
type Server = server::TlsStream<tokio::io::DuplexStream>;

/// Both outcomes of one handshake. The client writes a byte and reads one, since in TLS 1.3 it learns of the server's
/// refusal only then.
async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (io::Result<Client>, io::Result<Server>) {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from("nobody.invalid").expect("a name");
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

async fn certificate(mesh: &TestMesh, account: &str) -> Arc<WorkloadCertificate> {
    mesh.certificates.get(&identity("a", account)).await.expect("a certificate")
}

fn refused<T>(outcome: io::Result<T>, needle: &str) {
    let Err(error) = outcome else { panic!("expected a refusal with `{needle}`") };
    assert!(error.to_string().contains(needle), "`{error}` lacks `{needle}`");
}

#[tokio::test]
async fn two_workloads_meet() {
    let mesh = TestMesh::new();
    let (x, y) = (certificate(&mesh, "x").await, certificate(&mesh, "y").await);
    let expected = [identity("a", "other"), identity("a", "y")];
    let (client, server) = handshake(x.client_config(&expected), y.server_config()).await;
    let (client, server) = (client.expect("client side"), server.expect("server side"));
    let (client, server) = (client.get_ref().1, server.get_ref().1);
    assert_eq!(client.peer_certificates().and_then(peer_identity), Some(identity("a", "y")));
    assert_eq!(server.peer_certificates().and_then(peer_identity), Some(identity("a", "x")));
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!((client.alpn_protocol(), server.alpn_protocol()), (Some(&b"h2"[..]), Some(&b"h2"[..])));
    let suite = client.negotiated_cipher_suite().expect("done").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    let group = client.negotiated_key_exchange_group().expect("done").name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(server.server_name(), None, "no SNI");
    // A second one is a full handshake too.
    let (again, _) = handshake(x.client_config(&expected), y.server_config()).await;
    assert_eq!(again.expect("client side").get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let mesh = TestMesh::new();
    let (x, y) = (certificate(&mesh, "x").await, certificate(&mesh, "y").await);
    let (client, server) = handshake(x.client_config(&[identity("a", "z")]), y.server_config()).await;
    refused(client, "did not present the expected SAN");
    assert!(server.is_err());
    let (client, server) = handshake(x.client_config(&[]), y.server_config()).await;
    refused(client, "did not present the expected SAN");
    assert!(server.is_err());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = TestMesh::new();
    let (x, y) = (certificate(&mesh, "x").await, certificate(&mesh, "y").await);
    let mut anonymous = ClientConfig::clone(&x.client_config(&[identity("a", "y")]));
    anonymous.client_auth_cert_resolver = Arc::new(Nobody);
    let (client, server) = handshake(Arc::new(anonymous), y.server_config()).await;
    refused(server, "peer sent no certificates");
    assert!(client.is_err());
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn another_mesh_is_refused_both_ways() {
    let (ours, theirs) = (TestMesh::new(), TestMesh::new());
    let (x, y) = (certificate(&ours, "x").await, certificate(&theirs, "y").await);
    let (client, server) = handshake(x.client_config(&[identity("a", "y")]), y.server_config()).await;
    refused(client, "UnknownIssuer");
    assert!(server.is_err());
    // A client that would accept anybody's roots is still unknown to the server.
    let trusting = Arc::new(Loose::new());
    let careless = trusting.store().get(&identity("a", "x")).await.expect("a certificate");
    let mut config = ClientConfig::clone(&x.client_config(&[identity("a", "y")]));
    config.client_auth_cert_resolver = Arc::clone(&careless.client_config(&[]).client_auth_cert_resolver);
    let y = certificate(&ours, "y").await;
    let (_, server) = handshake(Arc::new(config), y.server_config()).await;
    refused(server, "UnknownIssuer");
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused_though_the_root_is_the_same() {
    let loose = Arc::new(Loose::new());
    let store = loose.store();
    let foreign = SpiffeId::new("other.example", "a", "x").expect("valid");
    let x = store.get(&foreign).await.expect("a certificate");
    let y = store.get(&identity("a", "y")).await.expect("a certificate");
    let (_, server) = handshake(x.client_config(&[identity("a", "y")]), y.server_config()).await;
    refused(server, "did not present the expected trustdomain");
}

#[tokio::test]
async fn expired_peers_are_refused_both_ways() {
    let mesh = TestMesh::new();
    let clock = ManualClock::new();
    let later = CertificateStore::new(Arc::clone(&mesh.ca) as _, clock.clone());
    let x = certificate(&mesh, "x").await;
    let y = later.get(&identity("a", "y")).await.expect("a certificate");
    let (client, server) = handshake(x.client_config(&[identity("a", "y")]), y.server_config()).await;
    assert!(client.is_ok() && server.is_ok(), "valid at first");
    // From y's point of view a day and an hour have passed since x's certificate was made.
    clock.advance(DAY + Duration::from_secs(3600));
    let (_, server) = handshake(x.client_config(&[identity("a", "y")]), y.server_config()).await;
    refused(server, "expired");
    let (client, _) = handshake(y.client_config(&[identity("a", "x")]), x.server_config()).await;
    refused(client, "expired");
}

#[tokio::test]
async fn configurations_are_made_once_per_set_of_identities() {
    let mesh = TestMesh::new();
    let x = certificate(&mesh, "x").await;
    let (y, z) = (identity("a", "y"), identity("a", "z"));
    let one = x.client_config(&[y.clone(), z.clone()]);
    assert!(Arc::ptr_eq(&one, &x.client_config(&[z.clone(), y.clone(), z])));
    assert!(!Arc::ptr_eq(&one, &x.client_config(&[y])));
}

#[test]
fn an_identity_is_one_uri_name_or_none() {
    let name = |uri: &str| SanType::URI(uri.try_into().expect("ASCII"));
    let host = || SanType::DnsName("y.a.svc".try_into().expect("ASCII"));
    let good = "spiffe://cluster.local/ns/a/sa/x";
    let cases = [
        (vec![name(good)], Some(identity("a", "x"))),
        (vec![host(), name(good)], Some(identity("a", "x"))),
        (vec![name(good), name("spiffe://cluster.local/ns/a/sa/y")], None),
        (vec![name("https://example.com"), name(good)], None),
        (vec![name("spiffe://cluster.local/ns/a/sa/x/more")], None),
        (vec![host()], None),
        (vec![], None),
    ];
    for (names, expected) in cases {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.clone();
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed");
        assert_eq!(peer_identity(&[certificate.der().clone()]), expected, "{names:?}");
    }
    assert_eq!(peer_identity(&[]), None);
    assert_eq!(peer_identity(&[CertificateDer::from(vec![1, 2, 3])]), None);
}

/// A CA without rules: it signs any name.
struct Loose {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Loose {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("signed").der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    fn store(self: &Arc<Self>) -> Arc<CertificateStore> {
        CertificateStore::new(Arc::clone(self) as _, Arc::new(SystemClock))
    }
}

impl CertificateSource for Loose {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        let csr = CertificateSigningRequestParams::from_pem(&csr_pem).expect("a request");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().expect("ASCII"))];
        let leaf = params.signed_by(&csr.public_key, &self.issuer).expect("signed");
        let issued = IssuedChain { chain: vec![leaf.der().clone()], roots: vec![self.root.clone()] };
        Box::pin(std::future::ready(Ok(issued)))
    }
}
