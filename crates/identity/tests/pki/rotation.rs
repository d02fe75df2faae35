//! Roots that change under living connections, and roots of other trust domains.

use std::{sync::Arc, time::Duration};

use ambit_identity::{CertificateStore, KeyExchange, SpiffeId, Trust, TrustError, WorkloadCertificate};
use ambit_testing::{ManualClock, identity};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::authority::{Authority, Changing, handshake, meet, store};

async fn get(store: &CertificateStore, account: &str) -> Arc<WorkloadCertificate> {
    store.get(&identity("a", account)).await.expect("a certificate")
}

/// Two nodes, each with a store, go from one root to another the way CAs do it: first a bundle of both, then
/// certificates from the new one, then a bundle without the old one.
#[tokio::test]
async fn a_rotation_drops_nobody() {
    let (old, new) = (Authority::root("mesh"), Authority::root("mesh"));
    let source = Changing::new(&old, &[&old]);
    let (here, there) = (store(&source), store(&source));
    let (x, y) = (get(&here, "x").await, get(&there, "y").await);
    let (x_server, x_client) = (x.server_config(), x.client_config(&[identity("a", "y")]));
    let (client, server) = handshake(Arc::clone(&x_client), y.server_config()).await;
    let (mut client, mut server) = (client.expect("client side"), server.expect("server side"));

    source.set(&old, &[&old, &new]);
    let x_both = get(&here, "x2").await;
    meet(&x_both, &y).await.expect("the peer has heard of nothing yet");
    meet(&y, &x_both).await.expect("nor the other way round");
    let y_both = get(&there, "y2").await;

    source.set(&new, &[&old, &new]);
    let y_new = get(&there, "y3").await;
    // What was made before the rotation follows it: the same configurations meet the new certificate.
    let met = handshake(x.client_config(&[identity("a", "y3")]), y_new.server_config()).await;
    assert!(met.0.is_ok() && met.1.is_ok(), "{met:?}");
    let met = handshake(y_new.client_config(&[identity("a", "x")]), Arc::clone(&x_server)).await;
    assert!(met.0.is_ok() && met.1.is_ok(), "{met:?}");
    for peer in [&y, &y_both, &y_new] {
        meet(&x, peer).await.expect("old and new side by side");
        meet(peer, &x).await.expect("old and new side by side");
    }

    source.set(&new, &[&new]);
    let (x_last, _) = (get(&here, "x4").await, get(&there, "y4").await);
    meet(&x_last, &y).await.expect("a peer that hasn't renewed yet");
    assert_eq!(&here.trust().roots()[..], std::slice::from_ref(&new.root));

    assert!(Arc::ptr_eq(&x_client, &x.client_config(&[identity("a", "y")])), "configurations are made once");
    assert!(Arc::ptr_eq(&x_server, &x.server_config()), "configurations are made once");
    client.write_all(b"still there").await.expect("the connection lives");
    let mut bytes = [0; 11];
    server.read_exact(&mut bytes).await.expect("the connection lives");
    assert_eq!(&bytes, b"still there");
}

#[tokio::test]
async fn a_root_that_was_left_out_ends_after_the_overlap() {
    let (old, new) = (Authority::root("mesh"), Authority::root("mesh"));
    let source = Changing::new(&old, &[&old]);
    let clock = ManualClock::new();
    let store = CertificateStore::new(Arc::clone(&source) as _, clock.clone());
    let x = get(&store, "x").await;
    let trust = Trust::new(KeyExchange::default());
    let peer = old.workload(&identity("a", "peer"), &trust);
    trust.replace_roots(vec![old.root.clone(), new.root.clone()]).expect("good roots");
    source.set(&new, &[&new]);
    get(&store, "y").await;

    meet(&peer, &x).await.expect("in the overlap");
    clock.advance(ambit_identity::limits::ROOT_OVERLAP - Duration::from_secs(60));
    meet(&peer, &x).await.expect("still in the overlap");
    // An old answer that comes late gives it no more time than its own.
    clock.advance(Duration::from_secs(120));
    let error = meet(&peer, &x).await.expect_err("after the overlap");
    assert!(error.contains("BadSignature"), "the other root has the same name: {error}");
    let y = get(&store, "y").await;
    meet(&new.workload(&identity("a", "other"), &Trust::new(KeyExchange::default())), &y)
        .await
        .expect("the new root stays");
}

#[tokio::test]
async fn replaced_roots_end_at_once() {
    let (old, new) = (Authority::root("mesh"), Authority::root("mesh"));
    let source = Changing::new(&old, &[&old]);
    let store = store(&source);
    let x = get(&store, "x").await;
    let peers = Trust::new(KeyExchange::default());
    let peer = old.workload(&identity("a", "peer"), &peers);
    meet(&peer, &x).await.expect("a known root");
    let mut changes = store.trust().changes();
    changes.mark_unchanged();
    store.trust().replace_roots(vec![new.root.clone()]).expect("good roots");
    assert!(changes.has_changed().expect("alive"), "whoever keeps connections is told");
    let error = meet(&peer, &x).await.expect_err("its root is gone");
    assert!(error.contains("BadSignature"), "the other root has the same name: {error}");
    // What can't be used changes nothing.
    assert!(store.trust().replace_roots(vec![]).is_err());
    assert!(store.trust().replace_roots(vec![CertificateDer::from(vec![0])]).is_err());
    assert_eq!(&store.trust().roots()[..], std::slice::from_ref(&new.root));
}

#[tokio::test]
async fn several_roots_count_alike() {
    let authorities: Vec<_> = (0..5).map(|n| Authority::root(&format!("root {n}"))).collect();
    let source = Changing::new(&authorities[0], &authorities.iter().collect::<Vec<_>>());
    let x = get(&store(&source), "x").await;
    for authority in &authorities {
        let trust = Trust::new(KeyExchange::default());
        let below = authority.intermediate("below");
        let peer = below.workload(&identity("a", "peer"), &trust);
        trust.replace_roots(vec![authorities[0].root.clone()]).expect("good roots");
        meet(&x, &peer).await.expect("one of the roots");
        meet(&peer, &x).await.expect("one of the roots");
    }
}

#[tokio::test]
async fn another_domains_roots_vouch_for_that_domain_only() {
    let (ours, theirs) = (Authority::root("ours"), Authority::root("theirs"));
    let trust = Trust::new(KeyExchange::default());
    let x = ours.workload(&identity("a", "x"), &trust);
    let foreign = SpiffeId::new("other.example", "a", "y").expect("valid");
    let open = |authority: &Arc<Authority>, id: &SpiffeId| {
        // A server that lets our clients in, though they are of another domain: what is tested is the client.
        let peer = Trust::new(KeyExchange::default());
        let certificate = authority.workload(id, &peer);
        let provider = Arc::clone(ambit_identity::tls::provider(KeyExchange::default()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificate.server_config().cert_resolver));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    let reaches = async |id: &SpiffeId, authority: &Arc<Authority>| {
        handshake(x.client_config(std::slice::from_ref(id)), open(authority, id)).await.0.is_ok()
    };
    assert!(!reaches(&foreign, &theirs).await, "their root is unknown");
    assert!(reaches(&foreign, &ours).await, "without a bundle of theirs our roots vouch for all");
    trust.set_foreign_roots("other.example", std::slice::from_ref(&theirs.root)).expect("good roots");
    assert!(reaches(&foreign, &theirs).await);
    assert!(!reaches(&foreign, &ours).await, "with a bundle of theirs only that counts");
    assert!(!reaches(&identity("a", "y"), &theirs).await, "their root can't pose as us");
    assert!(reaches(&identity("a", "y"), &ours).await);
    // Nor can our root pose as them towards our policies, which go by the first name.
    let both = ours.sign_for(&foreign, &[&foreign.to_string(), &identity("a", "y").to_string()]);
    let refused = handshake(both.client_config(&[identity("a", "x")]), x.server_config()).await.1;
    crate::authority::refused(refused, "peer did not present the expected trustdomain");
    trust.set_foreign_roots("other.example", &[]).expect("removed");
    let met = handshake(both.client_config(&[identity("a", "x")]), x.server_config()).await.1;
    met.expect("one of the names is of our domain");
    assert!(!reaches(&foreign, &theirs).await);
    // Bounded.
    for n in 0..ambit_identity::limits::MAX_FOREIGN_TRUST_DOMAINS {
        trust.set_foreign_roots(&format!("domain{n}"), std::slice::from_ref(&theirs.root)).expect("room");
    }
    let error = trust.set_foreign_roots("one.more", std::slice::from_ref(&theirs.root)).expect_err("full");
    assert!(matches!(error, TrustError::TooManyTrustDomains { .. }), "{error}");
}
