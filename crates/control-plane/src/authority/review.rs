//! Asking the API server whose token it is: once per token at a time, a bounded number at once, and remembered for moments.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ambit_identity::{BoxFuture, Clock};
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::timeout};

use super::account::Account;
use crate::limits::{
    MAX_CONCURRENT_REVIEWS, MAX_KNOWN_TOKENS, MAX_REVIEWS_PER_PEER, MAX_TOKEN_BYTES, MAX_WAITING_REVIEWS, REFUSAL_KEPT,
    REVIEW_KEPT, REVIEW_TIMEOUT,
};

/// Reviews tokens: the API server, or a test.
pub trait Reviewer: Send + Sync {
    /// What it says of a token for these audiences; an error if it can't say.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenReviewStatus, String>>;
}

/// The API server.
#[derive(Clone)]
pub struct ApiReviewer(Client);

/// Whose tokens they are.
pub struct TokenReviews {
    reviewer: Arc<dyn Reviewer>,
    audiences: Vec<String>,
    clock: Arc<dyn Clock>,
    started: Instant,
    room: Semaphore,
    known: Mutex<Known>,
}

/// Why it isn't known whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It is no token.
    #[error("no bearer token, or one of more than {MAX_TOKEN_BYTES} bytes")]
    NoToken,
    /// The API server refuses it, or it isn't for us.
    #[error("{0}")]
    Refused(String),
    /// Too many ask at once.
    #[error("too many tokens are being reviewed")]
    Busy,
    /// The API server can't say.
    #[error("the API server can't review the token: {0}")]
    Unavailable(String),
}

/// A token's SHA-256. The token itself is kept nowhere.
type Digest = [u8; SHA256_OUTPUT_LEN];
type Slot = Arc<tokio::sync::Mutex<Option<Outcome>>>;

#[derive(Default)]
struct Known {
    by_digest: HashMap<Digest, Slot>,
    /// Reviews that each peer waits for.
    waiting: HashMap<IpAddr, usize>,
    all_waiting: usize,
}

/// An outcome, and how long it counts.
struct Outcome {
    outcome: Result<Arc<Account>, ReviewError>,
    /// Since boot: nobody can set that back.
    until: Duration,
    /// The token's own end.
    expires: Option<SystemTime>,
}

/// A place among those that wait; given back when dropped.
struct Waiting<'a> {
    reviews: &'a TokenReviews,
    peer: IpAddr,
}

// === impl TokenReviews ===

impl TokenReviews {
    /// Accepts tokens for any of `audiences`.
    #[must_use]
    pub fn new(reviewer: Arc<dyn Reviewer>, audiences: Vec<String>, clock: Arc<dyn Clock>) -> Self {
        let room = Semaphore::new(MAX_CONCURRENT_REVIEWS);
        Self { reviewer, audiences, clock, started: Instant::now(), room, known: Mutex::default() }
    }

    /// Whose token it is that came from `peer`.
    ///
    /// # Errors
    /// When it is nobody's, or that can't be found out now.
    pub async fn account(&self, token: &str, peer: IpAddr) -> Result<Arc<Account>, ReviewError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(ReviewError::NoToken);
        }
        let slot = self.slot(token);
        if let Ok(known) = slot.try_lock()
            && let Some(outcome) = self.still_known(known.as_ref())
        {
            return outcome;
        }
        let _waiting = self.wait(peer)?;
        let asked = async {
            // One review of a token at a time; who waited finds its outcome. Dropped unfinished, the next one asks.
            let mut known = slot.lock().await;
            if let Some(outcome) = self.still_known(known.as_ref()) {
                return outcome;
            }
            let _room = self.room.acquire().await.map_err(|_| ReviewError::Busy)?;
            let fresh = self.ask(token).await;
            let outcome = fresh.outcome.clone();
            *known = (!matches!(outcome, Err(ReviewError::Unavailable(_) | ReviewError::Busy))).then_some(fresh);
            outcome
        };
        let late = || Err(ReviewError::Unavailable(format!("no answer within {REVIEW_TIMEOUT:?}")));
        timeout(REVIEW_TIMEOUT, asked).await.unwrap_or_else(|_| late())
    }

    async fn ask(&self, token: &str) -> Outcome {
        // Taken before the question: what happens while it is on its way must count.
        let now = self.since_start();
        let expires = expiry(token);
        match self.reviewer.review(token, &self.audiences).await {
            Err(reason) => Outcome { outcome: Err(ReviewError::Unavailable(reason)), until: now, expires },
            Ok(status) => match Account::reviewed(&status, &self.audiences) {
                Ok(account) => {
                    // Without a known end it isn't known how long it may be remembered.
                    let kept = if expires.is_some() { REVIEW_KEPT } else { Duration::ZERO };
                    Outcome { outcome: Ok(Arc::new(account)), until: now + kept, expires }
                }
                Err(reason) => {
                    Outcome { outcome: Err(ReviewError::Refused(reason)), until: now + REFUSAL_KEPT, expires: None }
                }
            },
        }
    }

    fn still_known(&self, known: Option<&Outcome>) -> Option<Result<Arc<Account>, ReviewError>> {
        known.filter(|known| self.counts(known)).map(|known| known.outcome.clone())
    }

    fn counts(&self, known: &Outcome) -> bool {
        self.since_start() < known.until && known.expires.is_none_or(|end| self.clock.now() < end)
    }

    fn since_start(&self) -> Duration {
        self.clock.since_boot().unwrap_or_else(|| self.started.elapsed())
    }

    /// The place of a token's outcome. One that isn't kept if there are too many tokens.
    fn slot(&self, token: &str) -> Slot {
        let mut key = [0; SHA256_OUTPUT_LEN];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let mut known = self.lock();
        if let Some(slot) = known.by_digest.get(&key) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        if known.by_digest.len() >= MAX_KNOWN_TOKENS {
            // Whoever is being asked about is held by somebody else.
            known.by_digest.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|known| known.as_ref().is_some_and(|known| self.counts(known)))
            });
        }
        if known.by_digest.len() < MAX_KNOWN_TOKENS {
            known.by_digest.insert(key, Arc::clone(&slot));
        }
        slot
    }

    fn wait(&self, peer: IpAddr) -> Result<Waiting<'_>, ReviewError> {
        let mut known = self.lock();
        let count = known.waiting.get(&peer).copied().unwrap_or_default();
        if count >= MAX_REVIEWS_PER_PEER || known.all_waiting >= MAX_WAITING_REVIEWS {
            return Err(ReviewError::Busy);
        }
        known.waiting.insert(peer, count + 1);
        known.all_waiting += 1;
        Ok(Waiting { reviews: self, peer })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviews").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}

/// When a token says that it ends. Only to be asked of a token that the API server accepts.
fn expiry(token: &str) -> Option<SystemTime> {
    let payload = token.split('.').nth(1)?;
    let payload = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.get("exp")?.as_u64()?))
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut known = self.reviews.lock();
        known.all_waiting -= 1;
        match known.waiting.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(known.waiting.remove(&self.peer)),
        }
    }
}

// === impl ApiReviewer ===

impl ApiReviewer {
    /// Asks this API server.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl Reviewer for ApiReviewer {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        Box::pin(async move {
            let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(audiences.to_vec()) };
            let review = TokenReview { spec, ..TokenReview::default() };
            let answer = Api::all(self.0.clone()).create(&PostParams::default(), &review).await;
            // Only the kind of error: a library's text could quote the request.
            let answer = answer.map_err(|error| match error {
                kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
                _ => "the request failed".to_owned(),
            })?;
            answer.status.ok_or_else(|| "its answer has no status".to_owned())
        })
    }
}

impl fmt::Debug for ApiReviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiReviewer").finish_non_exhaustive()
    }
}
