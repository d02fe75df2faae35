//! The rules on names in peers' certificates (`spec/ztunnel.md` 2.3): each row as a function and as a real handshake.

use ambit_identity::{
    KeyExchange, SpiffeId, Trust, expected_identity, in_trust_domain, peer_identities, peer_identity,
};
use ambit_testing::identity;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use crate::authority::{Authority, handshake, refused, uri_name};

fn certificate(names: Vec<SanType>) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").der().clone()
}

#[test]
fn identities_are_the_five_segment_names_and_others_are_skipped() {
    let host = || SanType::DnsName("y.a.svc".try_into().expect("ASCII"));
    let good = "spiffe://cluster.local/ns/a/sa/x";
    let (x, y) = (identity("a", "x"), identity("a", "y"));
    let none = Vec::new;
    let cases = [
        (vec![uri_name(good)], vec![x.clone()]),
        (vec![host(), uri_name(good)], vec![x.clone()]),
        (vec![uri_name(good), uri_name("spiffe://cluster.local/ns/a/sa/y")], vec![x.clone(), y]),
        (vec![uri_name("https://example.com"), uri_name(good)], vec![x.clone()]),
        (vec![uri_name("spiffe://cluster.local"), uri_name("urn:x"), uri_name(good)], vec![x]),
        (vec![uri_name("spiffe://cluster.local/ns/a/sa/x/more")], none()),
        (vec![uri_name("spiffe://cluster.local/ns/a/sa/x/")], none()),
        (vec![uri_name("spiffe://cluster.local/ns/a/sa/")], none()),
        (vec![uri_name("spiffe://cluster.local/ns//sa/x")], none()),
        (vec![uri_name("spiffe:///ns/a/sa/x")], none()),
        (vec![uri_name("spiffe://cluster.local/sa/x/ns/a")], none()),
        (vec![uri_name("spiffe://cluster.local/namespace/a/sa/x")], none()),
        (vec![uri_name("SPIFFE://cluster.local/ns/a/sa/x")], none()),
        (vec![uri_name("cluster.local/ns/a/sa/x")], none()),
        (vec![uri_name("spiffe://cluster.local/ns/a/sa/x y")], none()),
        (vec![host()], none()),
        (vec![], none()),
    ];
    for (names, expected) in cases {
        let leaf = certificate(names.clone());
        assert_eq!(peer_identities(&leaf), expected, "{names:?}");
        assert_eq!(peer_identity(&[leaf]), expected.first().cloned(), "{names:?}");
    }
    assert_eq!(peer_identity(&[]), None);
    assert_eq!(peer_identity(&[CertificateDer::from(vec![1, 2, 3])]), None);
}

/// The names a peer presents, and who is found.
struct Case {
    presented: &'static [&'static str],
    /// Of the identities `cluster.local/a/x` and `other/a/z`, which of those presented matches.
    as_server: Option<&'static str>,
    /// Whether it is a client of `cluster.local`.
    as_client: bool,
}

const X: &str = "spiffe://cluster.local/ns/a/sa/x";
const Y: &str = "spiffe://cluster.local/ns/a/sa/y";
const Z: &str = "spiffe://other/ns/a/sa/z";
const FOREIGN_X: &str = "spiffe://other/ns/a/sa/x";

const CASES: [Case; 10] = [
    Case { presented: &[X], as_server: Some(X), as_client: true },
    Case { presented: &[Y], as_server: None, as_client: true },
    Case { presented: &[Y, X], as_server: Some(X), as_client: true },
    Case { presented: &["urn:nothing", X], as_server: Some(X), as_client: true },
    Case { presented: &[Z], as_server: Some(Z), as_client: false },
    Case { presented: &[FOREIGN_X], as_server: None, as_client: false },
    Case { presented: &[FOREIGN_X, X], as_server: Some(X), as_client: true },
    Case { presented: &[Z, X], as_server: Some(Z), as_client: true },
    Case { presented: &["spiffe://cluster.local.evil/ns/a/sa/x"], as_server: None, as_client: false },
    Case { presented: &["https://cluster.local/ns/a/sa/x"], as_server: None, as_client: false },
];

fn parse(names: &[&str]) -> Vec<SpiffeId> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

#[test]
fn one_expected_identity_is_enough_and_clients_are_of_our_domain() {
    let expected = parse(&[X, Z]);
    for Case { presented, as_server, as_client } in CASES {
        let identities = parse(presented);
        let found = expected_identity(&identities, &expected).map(ToString::to_string);
        assert_eq!(found.as_deref(), as_server, "{presented:?}");
        assert_eq!(in_trust_domain(&identities, "cluster.local"), as_client, "{presented:?}");
        assert_eq!(expected_identity(&identities, &[]), None, "{presented:?}: nobody is expected");
    }
    assert!(!in_trust_domain(&parse(&[X]), "Cluster.local"), "names are compared as they stand");
    assert!(!in_trust_domain(&[], ""));
}

#[tokio::test]
async fn handshakes_follow_the_rules() {
    let authority = Authority::root("a");
    let trust = Trust::new(KeyExchange::default());
    let ours = authority.workload(&identity("a", "ours"), &trust);
    for Case { presented, as_server, as_client } in CASES {
        let key = KeyPair::generate().expect("a key");
        let issued = authority.sign(&key, presented, |_| {});
        // A peer of another make: it presents what it was given.
        let peer = Peer::new(&issued.chain, &key);
        let (client, _) = handshake(ours.client_config(&parse(&[X, Z])), peer.server()).await;
        match as_server {
            Some(_) => drop(client.expect("an expected server")),
            None if parse(presented).is_empty() => refused(client, "no workload identity"),
            None => refused(client, "peer did not present the expected SAN"),
        }
        let (_, server) = handshake(peer.client(), ours.server_config()).await;
        match as_client {
            true => drop(server.expect("a client of our trust domain")),
            false if parse(presented).is_empty() => refused(server, "no workload identity"),
            false => refused(server, "peer did not present the expected trustdomain"),
        }
    }
}

/// A peer that shows a chain and accepts anybody.
struct Peer {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Peer {
    fn new(chain: &[CertificateDer<'static>], key: &KeyPair) -> Self {
        Self { chain: chain.to_vec(), key: key.serialize_der() }
    }

    fn key(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        rustls::pki_types::PrivateKeyDer::Pkcs8(self.key.clone().into())
    }

    fn server(&self) -> std::sync::Arc<rustls::ServerConfig> {
        let provider = std::sync::Arc::clone(ambit_identity::tls::provider(KeyExchange::default()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key())
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        std::sync::Arc::new(config)
    }

    fn client(&self) -> std::sync::Arc<rustls::ClientConfig> {
        let provider = std::sync::Arc::clone(ambit_identity::tls::provider(KeyExchange::default()));
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(std::sync::Arc::new(crate::handshake::Anyone))
            .with_client_auth_cert(self.chain.clone(), self.key())
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        std::sync::Arc::new(config)
    }
}
