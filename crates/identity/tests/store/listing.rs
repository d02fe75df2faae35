//! What is told of the store in `/config_dump`.

use std::{sync::atomic::Ordering, time::Duration};

use ambit_testing::identity;
use tokio::time::sleep;

use crate::source::{RuntimeClock, setup};

#[tokio::test(start_paused = true)]
async fn every_identity_is_listed_with_its_state() {
    let (source, store) = setup(&RuntimeClock::new());
    assert!(store.list().is_empty());
    let available = store.get(&identity("b", "x")).await.expect("a certificate");
    source.broken.store(true, Ordering::SeqCst);
    store.get(&identity("c", "x")).await.expect_err("the CA is down");
    source.broken.store(false, Ordering::SeqCst);
    source.hangs.store(true, Ordering::SeqCst);
    store.prefetch(&identity("a", "x")).expect("room");
    sleep(Duration::from_millis(1)).await;

    let list = store.list();
    let states: Vec<_> = list.iter().map(|record| (record.identity.as_str(), record.state.as_str())).collect();
    let [first, second, (third, why)] = states[..] else { panic!("{states:?}") };
    assert_eq!(first, ("spiffe://cluster.local/ns/a/sa/x", "Initializing"));
    assert_eq!(second, ("spiffe://cluster.local/ns/b/sa/x", "Available"));
    assert_eq!(third, "spiffe://cluster.local/ns/c/sa/x");
    assert!(why.starts_with("Unavailable: ") && why.contains("connection refused"), "{why}");

    assert_eq!((list[0].cert_chain.len(), list[0].root_certs.len()), (0, 0));
    assert_eq!((list[1].cert_chain.len(), list[1].root_certs.len()), (1, 1));
    let leaf = ambit_identity::CertificateDetail::new(&available.chain()[0]);
    assert_eq!(list[1].cert_chain[0], leaf);
    let json = serde_json::to_value(&list[1]).expect("JSON");
    let keys: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["certChain", "identity", "rootCerts", "state"]);

    // Expired: still told, no longer available.
    sleep(Duration::from_secs(3700)).await;
    let list = store.list();
    assert!(list[1].state.starts_with("Unavailable: "), "{}", list[1].state);
    assert_eq!(list[1].cert_chain[0], leaf);
}
