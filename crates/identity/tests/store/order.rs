//! Who is served first: connections that wait, then workloads that have come, then renewals.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ambit_identity::{
    CertificateStore, SpiffeId,
    limits::{MAX_CONCURRENT_FETCHES, RESERVED_FETCHES},
};
use ambit_testing::identity;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, yield_now},
    time::sleep,
};

use crate::source::{HOUR, RuntimeClock, Source, setup};

fn id(kind: &str, n: usize) -> SpiffeId {
    identity("a", &format!("{kind}{n}"))
}

/// A store whose CA answers only as often as it is let.
fn gated() -> (Arc<Source>, Arc<CertificateStore>) {
    let clock = RuntimeClock::new();
    let mut source = Source::new(&clock, HOUR);
    source.gate = Some(Semaphore::new(0));
    let source = Arc::new(source);
    (Arc::clone(&source), CertificateStore::new(Arc::clone(&source) as _, clock))
}

fn allow(source: &Source, answers: usize) {
    source.gate.as_ref().expect("gated").add_permits(answers);
}

fn caller(store: &Arc<CertificateStore>, id: SpiffeId) -> JoinHandle<()> {
    let store = Arc::clone(store);
    tokio::spawn(async move { drop(store.get(&id).await.expect("a certificate")) })
}

/// Lets every task run as far as it can.
async fn settle() {
    for _ in 0..1000 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_go_first_then_new_workloads_then_renewals() {
    let (source, store) = gated();
    let first = MAX_CONCURRENT_FETCHES - RESERVED_FETCHES;
    for n in 0..first + 3 {
        store.prefetch(&id("warm", n)).expect("room");
    }
    settle().await;
    let mut expected: Vec<_> = (0..first).map(|n| id("warm", n)).collect();
    assert_eq!(source.order(), expected, "all but the slots kept for connections");

    let mut callers: Vec<_> = (0..RESERVED_FETCHES).map(|n| caller(&store, id("real", n))).collect();
    settle().await;
    expected.extend((0..RESERVED_FETCHES).map(|n| id("real", n)));
    assert_eq!(source.order(), expected, "connections don't wait for a CA that is slow on others");

    // Now all slots are taken. Another connection comes, then one for an identity that waits as a new workload.
    callers.push(caller(&store, id("real", 9)));
    settle().await;
    callers.push(caller(&store, id("warm", first + 1)));
    settle().await;
    assert_eq!(source.order().len(), MAX_CONCURRENT_FETCHES);
    for next in [id("real", 9), id("warm", first + 1)] {
        allow(&source, 1);
        sleep(Duration::from_millis(150)).await;
        settle().await;
        expected.push(next);
        assert_eq!(source.order(), expected);
    }
    allow(&source, 100);
    sleep(Duration::from_secs(2)).await;
    expected.extend([id("warm", first), id("warm", first + 2)]);
    assert_eq!(source.order(), expected, "the rest in the order they came");
    for caller in callers {
        caller.await.expect("served");
    }
    assert_eq!(source.asked() as usize, expected.len(), "each was fetched once");
}

#[tokio::test(start_paused = true)]
async fn renewals_wait_for_new_workloads() {
    let (source, store) = gated();
    allow(&source, 100);
    for n in 0..20 {
        store.get(&id("old", n)).await.expect("a certificate");
    }
    let before = source.asked() as usize;
    // The CA stops to answer, and all renewals come due.
    source.gate.as_ref().expect("gated").forget_permits(100);
    sleep(HOUR / 2).await;
    let held = MAX_CONCURRENT_FETCHES - RESERVED_FETCHES;
    let late = source.order().len();
    assert!(late >= before + held, "renewals are under way");
    store.prefetch(&id("new", 0)).expect("room");
    allow(&source, 1);
    sleep(Duration::from_millis(150)).await;
    settle().await;
    assert!(source.order()[late..].starts_with(&[id("new", 0)]), "{:?}", &source.order()[late..]);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_ca_does_not_hold_up_connections_behind_renewals() {
    let clock = RuntimeClock::new();
    let (source, store) = setup(&clock);
    for n in 0..100 {
        store.get(&id("old", n)).await.expect("a certificate");
    }
    source.hangs.store(true, Ordering::SeqCst);
    sleep(HOUR / 2).await;
    source.hangs.store(false, Ordering::SeqCst);
    let started = tokio::time::Instant::now();
    store.get(&id("real", 0)).await.expect("a certificate");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn prefetching_needs_nobody_who_waits() {
    let (source, store) = setup(&RuntimeClock::new());
    let x = id("x", 0);
    store.prefetch(&x).expect("room");
    assert!(store.current(&x).is_none(), "nothing waits");
    sleep(Duration::from_secs(1)).await;
    let certificate = store.current(&x).expect("fetched");
    store.prefetch(&x).expect("known");
    assert!(Arc::ptr_eq(&certificate, &store.get(&x).await.expect("the same")));
    assert_eq!(source.asked(), 1);
}
