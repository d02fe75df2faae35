//! What a CA signs with, as an operator may give it, and the certificate of a server that signs its own.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_identity::{
    Ca, CertificateRequest, CertificateStore, Clock, KeyExchange, ServerCertificate, Signer, SignerError, SignerFiles,
    SystemClock,
    limits::{DEFAULT_CERTIFICATE_TTL, ROOT_TTL},
    peer_identity, tls,
};
use ambit_testing::{ManualClock, TRUST_DOMAIN, TestMesh, identity};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize};
use rustls::{ClientConfig, RootCertStore, pki_types::UnixTime, time_provider::TimeProvider, version::TLS13};

use crate::authority::{Authority, handshake_with, serial};

const NAME: &str = "istiod.istio-system.svc";

fn files<'a>(certificate: &'a str, key: &'a str) -> SignerFiles<'a> {
    SignerFiles { certificate, key, chain: "", roots: "" }
}

fn new_ca(clock: &Arc<ManualClock>) -> Arc<Ca> {
    let root = Signer::new_root(TRUST_DOMAIN, ROOT_TTL, clock.now()).expect("a root");
    let signer = Signer::read(files(&root.certificate, &root.key), TRUST_DOMAIN, clock.now()).expect("usable");
    Arc::new(Ca::new(TRUST_DOMAIN, signer).expect("a CA").with_clock(Arc::clone(clock) as _))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// Lets the client's TLS read the test's clock.
#[derive(Debug)]
struct Time(Arc<ManualClock>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

fn client(ca: &Ca, clock: &Arc<ManualClock>, as_whom: Option<&ClientConfig>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(ca.signer().roots().iter().cloned());
    let provider = Arc::clone(tls::provider(KeyExchange::default()));
    let builder = ClientConfig::builder_with_details(provider, Arc::new(Time(Arc::clone(clock))))
        .with_protocol_versions(&[&TLS13])
        .expect("a provider of TLS 1.3")
        .with_root_certificates(roots);
    Arc::new(match as_whom {
        Some(config) => builder.with_client_cert_resolver(Arc::clone(&config.client_auth_cert_resolver)),
        None => builder.with_no_client_auth(),
    })
}

/// As Istio makes its own: RSA, and PKCS#1 in old installations.
#[test]
fn an_rsa_root_signs() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key).expect("signed").pem();
    // What PKCS#8 wraps a key of this size in is 26 bytes long.
    let wrapped = key.serialize_der();
    let pkcs1 = pem("RSA PRIVATE KEY", &wrapped[26..]);
    for key in [key.serialize_pem(), pkcs1] {
        let signer = Signer::read(files(&certificate, &key), TRUST_DOMAIN, SystemClock.now()).expect("usable");
        let ca = Ca::new(TRUST_DOMAIN, signer).expect("a CA");
        let request = CertificateRequest::new(&identity("a", "x")).expect("a request");
        let issued = ca.issue(request.pem(), request.identity(), DEFAULT_CERTIFICATE_TTL).expect("signed");
        request.check(&issued, &SystemClock).expect("peers take it");
    }
}

#[test]
fn a_certificate_that_may_not_sign_is_refused() {
    let mesh = TestMesh::new();
    let clock = ManualClock::new();
    let root = Signer::new_root(TRUST_DOMAIN, ROOT_TTL, clock.now()).expect("a root");
    let read = |certificate: &str, now| Signer::read(files(certificate, &root.key), TRUST_DOMAIN, now).map(|_| ());
    assert_eq!(read(&root.certificate, clock.now()), Ok(()));
    assert!(matches!(read(&root.certificate, clock.now() + ROOT_TTL), Err(SignerError::Time { .. })));
    assert!(matches!(read(&root.certificate, clock.now() - Duration::from_secs(3600)), Err(SignerError::Time { .. })));
    assert_eq!(read(&mesh.ca.root_pem(), clock.now()), Err(SignerError::OtherKey));

    let key = KeyPair::generate().expect("a key");
    let leaf = Authority::root("r").sign(&key, &["spiffe://cluster.local/ns/a/sa/x"], |_| {});
    let leaf = ambit_identity::certificate_pem(&leaf.chain[0]);
    let refused = Signer::read(files(&leaf, &key.serialize_pem()), TRUST_DOMAIN, clock.now());
    assert_eq!(refused.map(|_| ()), Err(SignerError::NotCa));
}

#[tokio::test]
async fn a_server_knows_clients_that_show_a_certificate() {
    let clock = ManualClock::new();
    let (ca, other) = (new_ca(&clock), new_ca(&clock));
    let server = ServerCertificate::new(Arc::clone(&ca), vec![NAME.into(), "127.0.0.1".into()]).expect("a certificate");
    let config = server.mesh_config();

    let (near, far) = handshake_with(NAME, client(&ca, &clock, None), Arc::clone(&config)).await;
    near.expect("its name is right");
    assert!(far.expect("a certificate isn't asked of everyone").get_ref().1.peer_certificates().is_none());
    let (near, _) = handshake_with("127.0.0.1", client(&ca, &clock, None), Arc::clone(&config)).await;
    near.expect("its address is right");
    let (near, _) = handshake_with("another.name", client(&ca, &clock, None), Arc::clone(&config)).await;
    assert!(near.is_err());

    let x = CertificateStore::new(Arc::clone(&ca) as _, clock.clone()).get(&identity("a", "x")).await.expect("one");
    let (_, far) = handshake_with(NAME, client(&ca, &clock, Some(&x.client_config(&[]))), Arc::clone(&config)).await;
    let shown = far.expect("of the mesh");
    assert_eq!(shown.get_ref().1.peer_certificates().and_then(peer_identity), Some(identity("a", "x")));
    let stranger = CertificateStore::new(other as _, clock.clone()).get(&identity("a", "x")).await.expect("one");
    let (_, far) = handshake_with(NAME, client(&ca, &clock, Some(&stranger.client_config(&[]))), config).await;
    assert!(far.is_err(), "another CA's word isn't taken");
    // Who isn't asked shows none.
    let (_, far) = handshake_with(NAME, client(&ca, &clock, Some(&x.client_config(&[]))), server.open_config()).await;
    assert!(far.expect("let in").get_ref().1.peer_certificates().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_renews_its_certificate_by_itself() {
    let clock = ManualClock::new();
    let ca = new_ca(&clock);
    let server = ServerCertificate::new(Arc::clone(&ca), vec![NAME.into()]).expect("a certificate");
    let config = server.mesh_config();
    tokio::spawn(Arc::clone(&server).keep());
    let shown = async |trusting: &Ca| {
        let (near, _) = handshake_with(NAME, client(trusting, &clock, None), Arc::clone(&config)).await;
        near.ok().map(|near| serial(&near.get_ref().1.peer_certificates().expect("shown")[0]))
    };
    // The first look of the task.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = shown(&ca).await.expect("trusted");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(shown(&ca).await, Some(first.clone()), "not before its time");
    clock.advance(DEFAULT_CERTIFICATE_TTL / 2);
    tokio::time::sleep(Duration::from_secs(61)).await;
    let second = shown(&ca).await.expect("trusted");
    assert_ne!(second, first);
    // The CA goes over to another root: so does the server, at once.
    let other = new_ca(&clock);
    ca.replace(Signer::clone(&other.signer()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = shown(&other).await.expect("by the new root");
    assert_ne!(third, second);
}
