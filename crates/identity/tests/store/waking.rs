//! Machines that sleep, and clocks that are set: nothing expired is ever served, and traffic flows again within 5 s.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ambit_identity::{CertificateError, CertificateStore, Clock, WorkloadCertificate};
use ambit_testing::identity;
use tokio::time::{Instant, sleep};

use crate::source::{HOUR, RuntimeClock, Source, setup};

const DAY_S: i64 = 24 * 3600;
const TWO_DAYS: Duration = Duration::from_secs(2 * 24 * 3600);
/// From the issue: so soon after waking traffic flows again.
const FLOWS_WITHIN: Duration = Duration::from_secs(5);

/// Asks again and again, as connections do, and returns when the first was served; whatever is served is checked.
async fn flows_after(store: &CertificateStore, clock: &RuntimeClock, account: &str) -> Duration {
    let started = Instant::now();
    loop {
        if let Ok(certificate) = store.get(&identity("a", account)).await {
            assert_usable(&certificate, clock);
            return started.elapsed();
        }
        assert!(started.elapsed() < Duration::from_secs(600), "it never flows again");
        sleep(Duration::from_millis(50)).await;
    }
}

fn assert_usable(certificate: &WorkloadCertificate, clock: &RuntimeClock) {
    let now = clock.now();
    assert!(certificate.not_before() <= now && now < certificate.not_after(), "served outside of its time");
    assert!(certificate.is_valid_now());
}

/// What the CA does while the machine wakes, and for how long.
enum Network {
    Fine,
    Refuses(Duration),
    Hangs(Duration),
}

#[tokio::test(start_paused = true)]
async fn traffic_flows_within_five_seconds_of_waking() {
    use Network::{Fine, Hangs, Refuses};
    let cases = [
        ("at once", Fine),
        ("refused for 1 s", Refuses(Duration::from_secs(1))),
        ("refused for 4 s", Refuses(Duration::from_secs(4))),
        ("silent for 1 s", Hangs(Duration::from_secs(1))),
        ("silent for 2.5 s", Hangs(Duration::from_millis(2500))),
    ];
    // How the time before was: all well, the CA away for hours, or a request under way.
    for before in ["well", "failing", "asking"] {
        for (name, network) in &cases {
            let clock = RuntimeClock::new();
            let (source, store) = setup(&clock);
            let old = store.get(&identity("a", "x")).await.expect("a certificate");
            match before {
                "failing" => {
                    source.broken.store(true, Ordering::SeqCst);
                    sleep(HOUR * 5).await;
                }
                "asking" => {
                    source.hangs.store(true, Ordering::SeqCst);
                    sleep(old.renew_at().duration_since(clock.now()).expect("to come") + HOUR / 7200).await;
                }
                _ => {}
            }
            clock.suspend(TWO_DAYS);
            assert!(!old.is_valid_now(), "{before}, {name}");
            let (broken, hangs, after) = match network {
                Fine => (false, false, Duration::ZERO),
                Refuses(after) => (true, false, *after),
                Hangs(after) => (false, true, *after),
            };
            source.broken.store(broken, Ordering::SeqCst);
            source.hangs.store(hangs, Ordering::SeqCst);
            let recovering = Arc::clone(&source);
            tokio::spawn(async move {
                sleep(after).await;
                recovering.broken.store(false, Ordering::SeqCst);
                recovering.hangs.store(false, Ordering::SeqCst);
            });
            let flows = flows_after(&store, &clock, "x").await;
            assert!(flows >= after && flows <= FLOWS_WITHIN, "{before}, {name}: flows after {flows:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn connections_go_first_where_many_wake_together() {
    let clock = RuntimeClock::new();
    let (source, store) = setup(&clock);
    for n in 0..300 {
        store.prefetch(&identity("a", &format!("x{n}"))).expect("room");
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.asked(), 300);
    clock.suspend(TWO_DAYS);
    // Long enough that all have noticed and are waiting for their turn.
    sleep(Duration::from_millis(1500)).await;
    let asked = source.order().split_off(300);
    let waiting = (0..300).map(|n| format!("x{n}")).find(|account| !asked.contains(&identity("a", account)));
    let waiting = waiting.expect("one whose turn has not come yet");
    assert!(flows_after(&store, &clock, &waiting).await < Duration::from_millis(500));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.asked(), 600, "each was fetched once");
}

#[tokio::test(start_paused = true)]
async fn a_sleep_is_noticed_with_nobody_asking() {
    let clock = RuntimeClock::new();
    let (source, store) = setup(&clock);
    let id = identity("a", "x");
    store.get(&id).await.expect("a certificate");
    for slept in [HOUR / 2, HOUR, TWO_DAYS] {
        let before = source.asked();
        clock.suspend(slept);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(source.asked(), before + 1, "{slept:?}");
        assert_usable(&store.current(&id).expect("renewed"), &clock);
    }
    // A nap changes nothing.
    let before = source.asked();
    clock.suspend(Duration::from_secs(600));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.asked(), before);
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_and_forth_serves_nothing_out_of_its_time() {
    let clock = RuntimeClock::new();
    let (source, store) = setup(&clock);
    let id = identity("a", "x");
    store.get(&id).await.expect("a certificate");
    for step in [-2 * DAY_S, 2 * DAY_S, 2 * DAY_S, -2 * DAY_S, -1800, 5400] {
        let before = source.asked();
        clock.step(step);
        assert!(flows_after(&store, &clock, "x").await <= FLOWS_WITHIN, "{step}");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(source.asked(), before + 1, "a step of {step} s asks for a new certificate once");
        assert_usable(&store.current(&id).expect("renewed"), &clock);
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_the_future_is_refused_until_the_clock_is_right() {
    let (ours, theirs) = (RuntimeClock::new(), RuntimeClock::new());
    let source = Arc::new(Source::new(&theirs, HOUR));
    let store = CertificateStore::new(Arc::clone(&source) as _, ours.clone());
    let id = identity("a", "x");
    let first = store.get(&id).await.expect("a certificate");
    ours.step(-2 * DAY_S);
    assert!(!first.is_valid_now());
    let error = store.get(&id).await.expect_err("the CA's time is not ours");
    assert!(matches!(&error, CertificateError::Unusable { reason, .. } if reason.contains("valid from")), "{error}");
    sleep(HOUR).await;
    assert!(store.current(&id).is_none());
    assert!(source.asked() < 120, "{} requests in an hour", source.asked());
    ours.step(2 * DAY_S);
    assert!(flows_after(&store, &ours, "x").await <= FLOWS_WITHIN);
}

#[tokio::test(start_paused = true)]
async fn a_life_is_not_prolonged_by_setting_the_clock_back() {
    let clock = RuntimeClock::new();
    let (source, store) = setup(&clock);
    let first = store.get(&identity("a", "x")).await.expect("a certificate");
    source.broken.store(true, Ordering::SeqCst);
    // Back by 50 minutes in two steps, each while the wall clock still finds the certificate good.
    sleep(HOUR / 2).await;
    clock.step(-25 * 60);
    sleep(HOUR / 2 - Duration::from_secs(60)).await;
    assert!(first.is_valid_now());
    sleep(Duration::from_secs(120)).await;
    assert!(clock.now() < first.not_after(), "by the wall clock it lives on");
    assert!(!first.is_valid_now(), "an hour is over");
    store.get(&identity("a", "x")).await.expect_err("rather none");
}

/// Many sleeps, steps and failures in any order: whatever is served is in its time, and in the end all flows.
#[tokio::test(start_paused = true)]
async fn any_course_of_events_serves_nothing_out_of_its_time() {
    for seed in 0..8_u64 {
        let clock = RuntimeClock::new();
        let (source, store) = setup(&clock);
        let mut random = seed;
        let mut next = |below: u64| {
            // A linear congruential generator, as in MMIX: enough to mix events, and the same in every run.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut served = 0;
        for _ in 0..100 {
            match next(6) {
                0 => clock.suspend(Duration::from_secs(next(2 * DAY_S as u64))),
                1 => clock.step(next(4 * DAY_S as u64) as i64 - 2 * DAY_S),
                2 => source.broken.store(next(2) == 0, Ordering::SeqCst),
                3 => source.hangs.store(next(4) == 0, Ordering::SeqCst),
                _ => {}
            }
            sleep(Duration::from_millis(next(120_000))).await;
            if let Ok(certificate) = store.get(&identity("a", &format!("x{}", next(3)))).await {
                assert_usable(&certificate, &clock);
                served += 1;
            }
        }
        assert!(served > 10, "seed {seed}: only {served} were served");
        source.broken.store(false, Ordering::SeqCst);
        source.hangs.store(false, Ordering::SeqCst);
        clock.suspend(TWO_DAYS);
        for account in ["x0", "x1", "x2"] {
            let flows = flows_after(&store, &clock, account).await;
            assert!(flows <= FLOWS_WITHIN, "seed {seed}: flows after {flows:?}");
        }
    }
}
