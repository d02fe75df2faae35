//! Whether peers of living connections would still be let in.

use std::{sync::Arc, time::Duration};

use ambit_identity::{Crls, Distrust, KeyExchange, Revocation, SpiffeId, Trust, WorkloadCertificate};
use ambit_testing::{ManualClock, identity};
use rustls::pki_types::CertificateDer;

use crate::authority::Authority;

/// Who keeps the connections, what it trusts, and the peer's chain.
struct Held {
    trust: Arc<Trust>,
    own: WorkloadCertificate,
    peer: Vec<CertificateDer<'static>>,
}

impl Held {
    fn new(own: &Authority, peer: &Authority) -> Self {
        let trust = Trust::new(KeyExchange::default());
        let own = own.workload(&identity("a", "own"), &trust);
        let peer = peer.workload(&identity("a", "peer"), &Trust::new(KeyExchange::default()));
        Self { trust, own, peer: peer.chain().to_vec() }
    }

    /// The same question of a client and of a server.
    fn ask(&self) -> [Option<Distrust>; 2] {
        let expected = [identity("a", "another"), identity("a", "peer")];
        [self.own.distrust_of_client(&self.peer), self.own.distrust_of_server(&self.peer, &expected)]
    }

    fn is_trusted(&self) -> bool {
        let answers = self.ask();
        assert!(answers[0].is_some() == answers[1].is_some(), "{answers:?}");
        answers[0].is_none()
    }
}

#[test]
fn roots_come_and_go() {
    let (old, new) = (Authority::root("mesh"), Authority::root("mesh"));
    let issuer = old.intermediate("issuer");
    let held = Held::new(&old, &issuer);
    assert!(held.is_trusted());
    let changes = held.own.trust_changes();
    for (roots, trusted) in
        [(vec![&old, &new], true), (vec![&new], false), (vec![&old], true), (vec![&new, &old], true)]
    {
        let roots = roots.iter().map(|authority| authority.root.clone()).collect();
        held.trust.replace_roots(roots).expect("good roots");
        assert!(changes.has_changed().expect("the trust is there"));
        assert_eq!(held.is_trusted(), trusted);
    }
    let without_issuer = Held { peer: held.peer[..1].to_vec(), ..Held::new(&old, &issuer) };
    assert!(!without_issuer.is_trusted(), "a chain that doesn't lead to the root");
    let nothing = Held { peer: Vec::new(), ..Held::new(&old, &issuer) };
    assert!(!nothing.is_trusted(), "no chain at all");
}

#[test]
fn lists_name_leaves_and_intermediates() {
    let root = Authority::root("mesh");
    let issuer = root.intermediate("issuer");
    let cases = [(issuer.crl(&[], 7), None), (root.crl(&[&issuer.certificate], 7), Some(1))];
    for (list, index) in cases {
        let held = Held::new(&root, &issuer);
        held.trust.set_crls(Arc::new(Crls::parse(&list).expect("a list")));
        for answer in held.ask() {
            match (answer, index) {
                (None, None) => {}
                (Some(Distrust::Revoked(Revocation::Listed { index: found, .. })), Some(index)) => {
                    assert_eq!(found, index);
                }
                (answer, _) => panic!("expected {index:?}, got {answer:?}"),
            }
        }
    }
    let held = Held::new(&root, &issuer);
    held.trust.set_crls(Arc::new(Crls::parse(&issuer.crl(&[&held.peer[0]], 7)).expect("a list")));
    assert!(!held.is_trusted());
    held.trust.set_crls(Arc::default());
    assert!(held.is_trusted(), "a list that is taken back");
}

#[test]
fn an_expired_certificate_is_no_reason() {
    let (old, new) = (Authority::root("mesh"), Authority::root("mesh"));
    let clock = ManualClock::new();
    let until = std::time::SystemTime::now() + Duration::from_secs(3600);
    let trust = Trust::new(KeyExchange::default());
    let own = old.workload_until(&identity("a", "own"), &trust, clock.clone(), None);
    let other = Trust::new(KeyExchange::default());
    let peer = old.workload_until(&identity("a", "peer"), &other, clock.clone(), Some(until));
    let held = Held { trust, own, peer: peer.chain().to_vec() };
    clock.advance(Duration::from_secs(3 * 3600));
    assert!(!peer.is_valid_now());
    assert!(held.is_trusted(), "it was valid when it counted");
    held.trust.replace_roots(vec![new.root.clone()]).expect("a good root");
    assert!(!held.is_trusted(), "but what the operator takes away is gone");
}

#[test]
fn another_domains_roots_vouch_for_its_servers_alone() {
    let (own, theirs) = (Authority::root("own"), Authority::root("theirs"));
    let id = SpiffeId::new("theirs", "a", "peer").expect("an identity");
    let trust = Trust::new(KeyExchange::default());
    let keeper = own.workload(&identity("a", "own"), &trust);
    let chain_of =
        |authority: &Authority| authority.workload(&id, &Trust::new(KeyExchange::default())).chain().to_vec();
    let (by_them, by_us) = (chain_of(&theirs), chain_of(&own));
    let expected = [id.clone()];
    let server = |chain: &[CertificateDer<'_>]| keeper.distrust_of_server(chain, &expected).is_none();
    assert!((server(&by_us), server(&by_them)) == (true, false), "without a bundle of theirs our roots vouch for all");
    assert!(keeper.distrust_of_client(&by_us).is_none());
    trust.set_foreign_roots("theirs", std::slice::from_ref(&theirs.root)).expect("good roots");
    assert!((server(&by_us), server(&by_them)) == (false, true));
    assert!(matches!(keeper.distrust_of_client(&by_us), Some(Distrust::Uncovered { .. })));
    let text = keeper.distrust_of_client(&by_us).expect("distrusted").to_string();
    assert!(text.contains("trust domain `theirs`"), "{text}");
}
