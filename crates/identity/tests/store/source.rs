//! A CA that counts, and that can fail, hang, or answer for somebody else; and clocks to go with tokio's.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_identity::{BoxFuture, Ca, CertificateSource, CertificateStore, Clock, IssuedChain, SourceError, SpiffeId};
use ambit_testing::TRUST_DOMAIN;
use tempfile::TempDir;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

pub const HOUR: Duration = Duration::from_secs(3600);

pub struct Source {
    ca: Ca,
    asked: AtomicU64,
    /// In the order they were asked for.
    pub order: Mutex<Vec<SpiffeId>>,
    pub broken: AtomicBool,
    pub hangs: AtomicBool,
    pub confused: AtomicBool,
    /// Answers allowed, if they are counted.
    pub gate: Option<Semaphore>,
    _dir: TempDir,
}

/// Clocks that go with tokio's, and that tests set: as by somebody with a watch, or by a sleep of the machine.
#[derive(Debug)]
pub struct RuntimeClock {
    start: (SystemTime, Instant),
    /// How far the wall clock and the boot-time clock are ahead of tokio's, in seconds.
    ahead_s: Mutex<(i64, u64)>,
}

impl RuntimeClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { start: (SystemTime::now(), Instant::now()), ahead_s: Mutex::default() })
    }

    /// The machine sleeps: timers stand still, the clocks don't.
    pub fn suspend(&self, time: Duration) {
        let mut ahead = self.ahead_s.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.0 += i64::try_from(time.as_secs()).expect("in range");
        ahead.1 += time.as_secs();
    }

    /// Somebody sets the wall clock on, or back.
    pub fn step(&self, seconds: i64) {
        self.ahead_s.lock().unwrap_or_else(PoisonError::into_inner).0 += seconds;
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> SystemTime {
        let (ahead, _) = *self.ahead_s.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.start.0 + self.start.1.elapsed();
        let step = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { now - step } else { now + step }
    }

    fn since_boot(&self) -> Option<Duration> {
        let (_, ahead) = *self.ahead_s.lock().unwrap_or_else(PoisonError::into_inner);
        Some(self.start.1.elapsed() + Duration::from_secs(1000 + ahead))
    }
}

/// A CA whose certificates live for an hour, by `clock` as the store.
pub fn setup(clock: &Arc<impl Clock + 'static>) -> (Arc<Source>, Arc<CertificateStore>) {
    let source = Arc::new(Source::new(clock, HOUR));
    (Arc::clone(&source), CertificateStore::new(source, clock.clone()))
}

impl Source {
    pub fn new(clock: &Arc<impl Clock + 'static>, ttl: Duration) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ca = Ca::open(dir.path(), TRUST_DOMAIN).expect("a CA").with_ttl(ttl).with_clock(clock.clone());
        let flag = || AtomicBool::new(false);
        let (broken, hangs, confused) = (flag(), flag(), flag());
        Self { ca, asked: AtomicU64::new(0), order: Mutex::default(), broken, hangs, confused, gate: None, _dir: dir }
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    pub fn order(&self) -> Vec<SpiffeId> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CertificateSource for Source {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.order.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
        let id = id.clone();
        Box::pin(async move {
            if let Some(gate) = &self.gate {
                gate.acquire().await.expect("never closed").forget();
            }
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
