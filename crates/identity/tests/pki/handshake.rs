//! Real handshakes between the configurations of two workload certificates.

use std::{sync::Arc, time::Duration};

use ambit_identity::{CertificateStore, KeyExchange, SpiffeId, SystemClock, Trust, WorkloadCertificate, peer_identity};
use ambit_testing::{ManualClock, TestMesh, identity};
use rustls::{
    ClientConfig, DigitallySignedStruct, NamedGroup, ProtocolVersion, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::authority::{Authority, handshake, meet, refused, store};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn certificate(mesh: &TestMesh, account: &str) -> Arc<WorkloadCertificate> {
    mesh.certificates.get(&identity("a", account)).await.expect("a certificate")
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
    let trusting = Authority::root("loose");
    let careless = store(&trusting).get(&identity("a", "x")).await.expect("a certificate");
    let mut config = ClientConfig::clone(&x.client_config(&[identity("a", "y")]));
    config.client_auth_cert_resolver = Arc::clone(&careless.client_config(&[]).client_auth_cert_resolver);
    let y = certificate(&ours, "y").await;
    let (_, server) = handshake(Arc::new(config), y.server_config()).await;
    refused(server, "UnknownIssuer");
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused_though_the_root_is_the_same() {
    let loose = Authority::root("loose");
    let store = store(&loose);
    let foreign = SpiffeId::new("other.example", "a", "x").expect("valid");
    let x = store.get(&foreign).await.expect("a certificate");
    let y = store.get(&identity("a", "y")).await.expect("a certificate");
    let (_, server) = handshake(x.client_config(&[identity("a", "y")]), y.server_config()).await;
    refused(server, "did not present the expected trustdomain");
}

#[tokio::test]
async fn expired_peers_are_refused_both_ways() {
    let authority = Authority::root("a");
    let clock = ManualClock::new();
    let trust = || Trust::new(KeyExchange::default());
    let soon = std::time::SystemTime::now() + DAY;
    let x = authority.workload_until(&identity("a", "x"), &trust(), Arc::new(SystemClock), Some(soon));
    let y = authority.workload_until(&identity("a", "y"), &trust(), clock.clone(), None);
    meet(&x, &y).await.expect("valid at first");
    meet(&y, &x).await.expect("valid at first");
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

#[tokio::test]
async fn key_exchanges_are_as_chosen() {
    use KeyExchange::{PostQuantumFirst as First, PostQuantumOnly as Only};
    let authority = Authority::root("a");
    let certificate = |key_exchange, account| authority.workload(&identity("a", account), &Trust::new(key_exchange));
    for (client, server) in [(First, First), (First, Only), (Only, First), (Only, Only)] {
        let (x, y) = (certificate(client, "x"), certificate(server, "y"));
        let (near, _) = handshake(x.client_config(&[identity("a", "y")]), y.server_config()).await;
        let group = near.expect("they meet").get_ref().1.negotiated_key_exchange_group().expect("done").name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
    }
    // A peer that only knows the classical groups is served, unless post-quantum is asked for.
    let mut classical = rustls::crypto::CryptoProvider::clone(ambit_identity::tls::provider(First));
    classical.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    let x = certificate(First, "x");
    let old = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_cert_resolver(Arc::clone(&x.client_config(&[]).client_auth_cert_resolver));
    let old = Arc::new(old);
    let (near, far) = handshake(Arc::clone(&old), certificate(First, "y").server_config()).await;
    assert!(near.is_ok() && far.is_ok(), "{near:?} {far:?}");
    let (near, far) = handshake(old, certificate(Only, "y").server_config()).await;
    refused(far, "NoKxGroupsInCommon");
    refused(near, "HandshakeFailure");
}

/// Accepts every server: what the client checks is not what is tested.
#[derive(Debug)]
pub struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[test]
fn compliance_policies_are_known_or_refused() {
    assert_eq!("".parse(), Ok(KeyExchange::PostQuantumFirst));
    assert_eq!("pqc".parse(), Ok(KeyExchange::PostQuantumOnly));
    for policy in ["PQC", "fips", "pqc,fips"] {
        let error = policy.parse::<KeyExchange>().expect_err("a promise nobody keeps");
        assert!(error.to_string().contains(policy));
    }
}

#[tokio::test]
async fn an_expired_certificate_is_presented_by_nobody_who_kept_its_configurations() {
    let mesh = TestMesh::new();
    let clock = ManualClock::new();
    let later = CertificateStore::new(Arc::clone(&mesh.ca) as _, clock.clone());
    let ours = later.get(&identity("a", "x")).await.expect("a certificate");
    let (as_client, as_server) = (ours.client_config(&[identity("a", "y")]), ours.server_config());
    let y = certificate(&mesh, "y").await;
    clock.advance(2 * DAY);
    // The peer's clock stands where the certificate is still good; what ends it is our own.
    let (_, server) = handshake(y.client_config(&[identity("a", "x")]), as_server).await;
    assert!(server.is_err(), "an expired certificate was served");
    let (_, server) = handshake(as_client, y.server_config()).await;
    assert!(server.is_err(), "an expired certificate was shown");
    assert!(!ours.is_valid_now());
}
