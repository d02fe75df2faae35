//! The store: one fetch however many ask, renewal in time, and never an expired certificate.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_identity::{
    BoxFuture, Ca, CertificateError, CertificateSource, CertificateStore, Clock, IssuedChain, SourceError, SpiffeId,
    limits::{FETCH_TIMEOUT, MAX_IDENTITIES, MAX_TIMER_SLICE},
};
use ambit_testing::{ManualClock, TRUST_DOMAIN, identity};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const HOUR: Duration = Duration::from_secs(3600);

/// A CA that counts, and that can fail, hang, or answer for somebody else.
struct Source {
    ca: Ca,
    asked: AtomicU64,
    broken: AtomicBool,
    hangs: AtomicBool,
    confused: AtomicBool,
    _dir: TempDir,
}

/// Wall time that goes with tokio's, which the tests let run fast.
#[derive(Debug)]
struct RuntimeClock(SystemTime, Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> SystemTime {
        self.0 + self.1.elapsed()
    }
}

fn runtime_clock() -> Arc<RuntimeClock> {
    Arc::new(RuntimeClock(SystemTime::now(), Instant::now()))
}

fn setup(clock: &Arc<impl Clock + 'static>) -> (Arc<Source>, Arc<CertificateStore>) {
    let dir = TempDir::new().expect("a temporary directory");
    let ca = Ca::open(dir.path(), TRUST_DOMAIN).expect("a CA").with_ttl(HOUR).with_clock(clock.clone());
    let flag = || AtomicBool::new(false);
    let source = Source { ca, asked: AtomicU64::new(0), broken: flag(), hangs: flag(), confused: flag(), _dir: dir };
    let source = Arc::new(source);
    (source.clone(), CertificateStore::new(source, clock.clone()))
}

impl Source {
    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl CertificateSource for Source {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let id = id.clone();
        Box::pin(async move {
            sleep(Duration::from_millis(100)).await;
            if self.hangs.load(Ordering::SeqCst) {
                pending::<()>().await;
            }
            if self.broken.load(Ordering::SeqCst) {
                return Err(SourceError::Unreachable { reason: "connection refused".to_owned() });
            }
            if self.confused.load(Ordering::SeqCst) {
                let csr = rcgen::CertificateParams::default()
                    .serialize_request(&rcgen::KeyPair::generate().expect("a key"))
                    .and_then(|csr| csr.pem())
                    .expect("a request");
                return self.ca.certificate(&id, csr).await;
            }
            self.ca.certificate(&id, csr_pem).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn callers_at_one_moment_share_one_fetch() {
    let (source, store) = setup(&runtime_clock());
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
    let (source, store) = setup(&runtime_clock());
    let id = identity("a", "x");
    let left = tokio::time::timeout(Duration::from_millis(10), store.get(&id)).await;
    assert!(left.is_err());
    store.get(&id).await.expect("a certificate");
    assert_eq!(source.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_of_the_life() {
    let clock = runtime_clock();
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
    let (source, store) = setup(&runtime_clock());
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
    let (source, store) = setup(&runtime_clock());
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
    let (source, store) = setup(&runtime_clock());
    source.confused.store(true, Ordering::SeqCst);
    let error = store.get(&identity("a", "x")).await.expect_err("the certificate is for another key");
    assert!(matches!(error, CertificateError::Unusable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_is_given_up() {
    let (source, store) = setup(&runtime_clock());
    source.hangs.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let error = store.get(&identity("a", "x")).await.expect_err("no answer");
    assert!(matches!(error, CertificateError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < FETCH_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_no_longer_renewed() {
    let (source, store) = setup(&runtime_clock());
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
    let (source, store) = setup(&runtime_clock());
    source.hangs.store(true, Ordering::SeqCst);
    for n in 0..MAX_IDENTITIES {
        let soon = tokio::time::timeout(Duration::ZERO, store.get(&identity("a", &format!("x{n}")))).await;
        assert!(soon.is_err(), "waits for the CA");
    }
    let error = store.get(&identity("a", "one-more")).await.expect_err("full");
    assert!(matches!(error, CertificateError::TooManyIdentities { .. }), "{error}");
}
