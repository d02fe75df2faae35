//! Fetching, renewing and failing while the clocks go as they should, and the simplest sleeps.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ambit_identity::{
    CertificateError, Clock,
    limits::{FETCH_TIMEOUT, MAX_IDENTITIES, MAX_TIMER_SLICE},
};
use ambit_testing::{ManualClock, identity};
use tokio::time::{Instant, sleep};

use crate::source::{HOUR, RuntimeClock, Source, setup};

#[tokio::test(start_paused = true)]
async fn callers_at_one_moment_share_one_fetch() {
    let (source, store) = setup(&RuntimeClock::new());
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.get(&identity("a", "x")).await.expect("a certificate") })
        })
        .collect();
    let mut certificates = Vec::new();
    for caller in callers {
        certificates.push(caller.await.expect("no panic"));
    }
    assert!(certificates.iter().all(|certificate| Arc::ptr_eq(certificate, &certificates[0])));
    assert_eq!(certificates[0].identity(), &identity("a", "x"));
    assert_eq!(source.asked(), 1);
    store.get(&identity("a", "y")).await.expect("a certificate");
    assert_eq!(source.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_does_not_stop_the_fetch() {
    let (source, store) = setup(&RuntimeClock::new());
    let id = identity("a", "x");
    let left = tokio::time::timeout(Duration::from_millis(10), store.get(&id)).await;
    assert!(left.is_err());
    store.get(&id).await.expect("a certificate");
    assert_eq!(source.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_of_the_life() {
    let clock = RuntimeClock::new();
    let (source, store) = setup(&clock);
    let id = identity("a", "x");
    let first = store.get(&id).await.expect("a certificate");
    // One hour and the two minutes before: half is 29 minutes from now.
    let half = first.renew_at().duration_since(clock.now()).expect("in the future");
    assert!((Duration::from_secs(28 * 60)..Duration::from_secs(30 * 60)).contains(&half), "{half:?}");
    sleep(half - Duration::from_secs(2)).await;
    assert_eq!(source.asked(), 1);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(source.asked(), 2);
    let second = store.get(&id).await.expect("a certificate");
    assert!(second.not_after() > first.not_after());
    // And so on, with nobody asking.
    sleep(10 * HOUR).await;
    assert!((18..=24).contains(&source.asked()), "{}", source.asked());
}

#[tokio::test(start_paused = true)]
async fn after_a_long_sleep_the_expired_certificate_is_not_served() {
    let clock = ManualClock::new();
    let (source, store) = setup(&clock);
    let id = identity("a", "x");
    let first = store.get(&id).await.expect("a certificate");
    // Suspended for two days: the wall clock moved, the timers did not.
    clock.advance(48 * HOUR);
    assert!(!first.is_valid_now());
    let second = store.get(&id).await.expect("a certificate");
    assert!(second.is_valid_now() && second.not_after() > clock.now());
    assert_eq!(source.asked(), 2);

    clock.advance(48 * HOUR);
    source.broken.store(true, Ordering::SeqCst);
    store.get(&id).await.expect_err("rather none than an expired one");
}

#[tokio::test(start_paused = true)]
async fn a_sleep_past_the_renewal_is_noticed_without_a_caller() {
    let clock = ManualClock::new();
    let (source, store) = setup(&clock);
    store.get(&identity("a", "x")).await.expect("a certificate");
    clock.advance(HOUR / 2);
    sleep(MAX_TIMER_SLICE + Duration::from_secs(1)).await;
    assert_eq!(source.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_and_retried_with_growing_pauses() {
    let (source, store) = setup(&RuntimeClock::new());
    let id = identity("a", "x");
    source.broken.store(true, Ordering::SeqCst);
    let error = store.get(&id).await.expect_err("the CA is down");
    assert!(matches!(&error, CertificateError::Source { identity, .. } if *identity == id), "{error}");
    for _ in 0..10 {
        store.get(&id).await.expect_err("still the same failure");
    }
    assert_eq!(source.asked(), 1);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(source.asked(), 2);
    sleep(HOUR).await;
    let asked = source.asked();
    assert!((25..=35).contains(&asked), "an hour at up to 150 s is about 30 attempts, not {asked}");
    source.broken.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(151)).await;
    store.get(&id).await.expect("a certificate");
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_leaves_the_valid_certificate_in_use() {
    let (source, store) = setup(&RuntimeClock::new());
    let id = identity("a", "x");
    let first = store.get(&id).await.expect("a certificate");
    source.broken.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(50 * 60)).await;
    assert!(source.asked() > 3);
    assert!(Arc::ptr_eq(&store.get(&id).await.expect("still valid"), &first));
    sleep(Duration::from_secs(11 * 60)).await;
    store.get(&id).await.expect_err("expired by now");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_fit_is_refused() {
    let (source, store) = setup(&RuntimeClock::new());
    source.confused.store(true, Ordering::SeqCst);
    let error = store.get(&identity("a", "x")).await.expect_err("the certificate is for another key");
    assert!(matches!(error, CertificateError::Unusable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_is_given_up() {
    let (source, store) = setup(&RuntimeClock::new());
    source.hangs.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let error = store.get(&identity("a", "x")).await.expect_err("no answer");
    assert!(matches!(error, CertificateError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < FETCH_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_no_longer_renewed() {
    let (source, store) = setup(&RuntimeClock::new());
    let id = identity("a", "x");
    let first = store.get(&id).await.expect("a certificate");
    store.forget(&id);
    sleep(5 * HOUR).await;
    assert_eq!(source.asked(), 1);
    let second = store.get(&id).await.expect("a certificate");
    assert!(!Arc::ptr_eq(&first, &second));
}

#[tokio::test(start_paused = true)]
async fn the_store_is_bounded() {
    let (source, store) = setup(&RuntimeClock::new());
    source.hangs.store(true, Ordering::SeqCst);
    for n in 0..MAX_IDENTITIES {
        let soon = tokio::time::timeout(Duration::ZERO, store.get(&identity("a", &format!("x{n}")))).await;
        assert!(soon.is_err(), "waits for the CA");
    }
    let error = store.get(&identity("a", "one-more")).await.expect_err("full");
    assert!(matches!(error, CertificateError::TooManyIdentities { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn identities_that_are_no_longer_used_are_forgotten() {
    let (source, store) = setup(&RuntimeClock::new());
    for account in ["x", "y", "z"] {
        store.get(&identity("a", account)).await.expect("a certificate");
    }
    store.retain(|id| id.service_account() == "y");
    assert!(store.current(&identity("a", "x")).is_none());
    assert!(store.current(&identity("a", "y")).is_some());
    sleep(HOUR / 2).await;
    assert_eq!(source.asked(), 4, "only `y` is renewed");
    assert_eq!(store.list().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_tried_again_when_the_certificate_ends() {
    let (source, store) = setup(&RuntimeClock::new());
    let id = identity("a", "x");
    let first = store.get(&id).await.expect("a certificate");
    source.broken.store(true, Ordering::SeqCst);
    // From half of its life on; the pauses are at their longest when it ends.
    sleep(HOUR - Duration::from_secs(5)).await;
    assert!(first.is_valid_now());
    let before = source.asked();
    sleep(Duration::from_secs(6)).await;
    assert!(!first.is_valid_now());
    assert!(source.asked() > before, "no attempt at the end");
}

#[tokio::test(start_paused = true)]
async fn certificates_that_end_at_once_do_not_keep_the_ca_busy() {
    let clock = RuntimeClock::new();
    let source = Arc::new(Source::new(&clock, Duration::from_secs(2)));
    let store = ambit_identity::CertificateStore::new(Arc::clone(&source) as _, clock.clone());
    store.get(&identity("a", "x")).await.expect("a certificate");
    sleep(Duration::from_secs(60)).await;
    assert!((30..=62).contains(&source.asked()), "{} in a minute", source.asked());
    // With a clock so far ahead that half of every life is over when it comes, half of the rest counts.
    let clock = RuntimeClock::new();
    let source = Arc::new(Source::new(&clock, HOUR));
    let ahead = RuntimeClock::new();
    ahead.step(40 * 60);
    let store = ambit_identity::CertificateStore::new(Arc::clone(&source) as _, ahead);
    store.get(&identity("a", "x")).await.expect("a certificate");
    sleep(Duration::from_secs(9 * 60)).await;
    assert_eq!(source.asked(), 1);
    sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(source.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn pauses_after_failures_are_spread() {
    let (source, store) = setup(&RuntimeClock::new());
    source.broken.store(true, Ordering::SeqCst);
    for n in 0..64 {
        store.prefetch(&identity("a", &format!("x{n}"))).expect("room");
    }
    // The first attempts are over after 64 / 6 turns of 100 ms; the second are due 0.8 s to 1.2 s after each.
    sleep(Duration::from_secs(30)).await;
    let order = source.order();
    let position = |n: usize| order.iter().rposition(|id| *id == identity("a", &format!("x{n}")));
    let last: Vec<_> = (0..64).map(position).collect();
    assert!(!last.is_sorted(), "everybody still goes in step");
}
