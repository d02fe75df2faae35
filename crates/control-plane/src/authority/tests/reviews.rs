//! How tokens are reviewed: rarely, a bounded number at once, and never longer than they count.

use std::{
    net::IpAddr,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use ambit_identity::Clock;
use tokio::sync::Semaphore;

use super::*;
use crate::limits::{
    MAX_CONCURRENT_REVIEWS, MAX_KNOWN_TOKENS, MAX_REVIEWS_PER_PEER, MAX_TOKEN_BYTES, REFUSAL_KEPT, REVIEW_KEPT,
    REVIEW_TIMEOUT,
};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Both clocks, set by hand.
#[derive(Debug)]
struct Clocks(Mutex<(SystemTime, Duration)>);

impl Clocks {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((SystemTime::now(), Duration::from_secs(1000)))))
    }

    fn pass(&self, by: Duration) {
        let mut now = self.0.lock().expect("no panic");
        now.0 += by;
        now.1 += by;
    }

    fn set_back(&self, by: Duration) {
        self.0.lock().expect("no panic").0 -= by;
    }
}

impl Clock for Clocks {
    fn now(&self) -> SystemTime {
        self.0.lock().expect("no panic").0
    }

    fn since_boot(&self) -> Option<Duration> {
        Some(self.0.lock().expect("no panic").1)
    }
}

/// A desk that answers when it is let, and notes how many wait.
struct SlowDesk {
    let_go: Semaphore,
    there: AtomicUsize,
    most: AtomicUsize,
    asked: AtomicUsize,
    status: Result<TokenReviewStatus, String>,
}

impl Reviewer for SlowDesk {
    fn review<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let there = self.there.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(there, Ordering::SeqCst);
            let _leaving = Leaving(&self.there);
            drop(self.let_go.acquire().await.expect("open"));
            self.status.clone()
        })
    }
}

/// Counts down, also when a review is given up.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn accepted() -> TokenReviewStatus {
    let user = UserInfo {
        username: Some("system:serviceaccount:a:b".into()),
        groups: Some(vec!["system:serviceaccounts".into()]),
        ..UserInfo::default()
    };
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec!["istio-ca".into()]),
        user: Some(user),
        error: None,
    }
}

fn slow(status: Result<TokenReviewStatus, String>) -> (Arc<SlowDesk>, Arc<TokenReviews>) {
    let zero = AtomicUsize::default;
    let desk = SlowDesk { let_go: Semaphore::new(0), there: zero(), most: zero(), asked: zero(), status };
    let desk = Arc::new(desk);
    let reviews = TokenReviews::new(Arc::clone(&desk) as _, vec!["istio-ca".into()], Arc::new(SystemClock));
    (desk, Arc::new(reviews))
}

/// A token whose own end is `left` from now.
fn token(clock: &Clocks, left: Duration) -> String {
    let end = (clock.now() + left).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let payload = data_encoding::BASE64URL_NOPAD.encode(format!("{{\"exp\":{end}}}").as_bytes());
    format!("e30.{payload}.the-token.")
}

fn desk(clock: &Arc<Clocks>) -> (Arc<AtomicUsize>, TokenReviews) {
    let asked = Arc::new(AtomicUsize::default());
    let desk = Desk { status: accepted(), asked: Arc::clone(&asked) };
    let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
    (asked, TokenReviews::new(Arc::new(desk), vec!["istio-ca".into()], clock))
}

#[tokio::test]
async fn an_accepted_token_is_remembered_for_moments() {
    let clock = Clocks::new();
    let (asked, reviews) = desk(&clock);
    let token = token(&clock, Duration::from_secs(3600));
    for _ in 0..3 {
        reviews.account(&token, PEER).await.expect("accepted");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // The wall clock alone, set back, makes nothing last longer.
    clock.set_back(Duration::from_secs(3600));
    clock.pass(REVIEW_KEPT);
    reviews.account(&token, PEER).await.expect("accepted");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn no_token_is_remembered_beyond_its_end() {
    let clock = Clocks::new();
    let (asked, reviews) = desk(&clock);
    let short = token(&clock, Duration::from_secs(3));
    reviews.account(&short, PEER).await.expect("accepted");
    clock.pass(Duration::from_secs(2));
    reviews.account(&short, PEER).await.expect("accepted");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    clock.pass(Duration::from_secs(2));
    reviews.account(&short, PEER).await.expect("what the API server says counts");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "it was asked again");
    // One without a known end isn't remembered at all.
    for _ in 0..2 {
        reviews.account(TOKEN, PEER).await.expect("accepted");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_refused_token_is_hardly_remembered() {
    let clock = Clocks::new();
    let (asked, reviews) = desk(&clock);
    for _ in 0..3 {
        reviews.account("bad", PEER).await.expect_err("refused");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    clock.pass(REFUSAL_KEPT);
    reviews.account("bad", PEER).await.expect_err("refused");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_is_no_token_is_not_sent() {
    let (asked, reviews) = desk(&Clocks::new());
    for bad in [String::new(), "x".repeat(MAX_TOKEN_BYTES + 1)] {
        assert_eq!(reviews.account(&bad, PEER).await, Err(ReviewError::NoToken));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn more_tokens_than_are_remembered_are_still_reviewed() {
    let clock = Clocks::new();
    let (asked, reviews) = desk(&clock);
    let count = MAX_KNOWN_TOKENS + 10;
    for number in 0..count {
        let token = format!("{}{number}", token(&clock, Duration::from_secs(3600)));
        reviews.account(&token, PEER).await.expect("accepted");
    }
    assert_eq!(asked.load(Ordering::SeqCst), count);
    // Old ones make room.
    clock.pass(REVIEW_KEPT);
    let late = token(&clock, Duration::from_secs(60));
    for _ in 0..2 {
        reviews.account(&late, PEER).await.expect("accepted");
    }
    assert_eq!(asked.load(Ordering::SeqCst), count + 1);
}

#[tokio::test]
async fn one_token_is_one_review_however_many_ask() {
    let (desk, reviews) = slow(Ok(accepted()));
    let clock = Clocks::new();
    let token = token(&clock, Duration::from_secs(3600));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let (reviews, token) = (Arc::clone(&reviews), token.clone());
            tokio::spawn(async move { reviews.account(&token, PEER).await })
        })
        .collect();
    while desk.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    desk.let_go.add_permits(1);
    for asked in asking {
        asked.await.expect("no panic").expect("accepted");
    }
    assert_eq!(desk.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn reviews_are_bounded_in_number_and_time() {
    let (desk, reviews) = slow(Ok(accepted()));
    let asking: Vec<_> = (0..MAX_REVIEWS_PER_PEER + 3)
        .map(|number| {
            let reviews = Arc::clone(&reviews);
            tokio::spawn(async move { reviews.account(&number.to_string(), PEER).await })
        })
        .collect();
    let start = tokio::time::Instant::now();
    let (mut busy, mut late) = (0, 0);
    for asked in asking {
        match asked.await.expect("no panic") {
            Err(ReviewError::Busy) => busy += 1,
            Err(ReviewError::Unavailable(_)) => late += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((busy, late), (3, MAX_REVIEWS_PER_PEER));
    assert_eq!(desk.most.load(Ordering::SeqCst), MAX_CONCURRENT_REVIEWS);
    assert_eq!(start.elapsed(), REVIEW_TIMEOUT);
    // All places are free again, and who waits at one address is not in the way of another.
    desk.let_go.add_permits(1);
    let other = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    reviews.account("again", PEER).await.expect("accepted");
    reviews.account("other", other).await.expect("accepted");
}

#[tokio::test]
async fn what_the_api_server_cannot_say_is_asked_again() {
    let (desk, reviews) = slow(Err("away".into()));
    desk.let_go.add_permits(1);
    for count in 1..=3 {
        let error = reviews.account("a", PEER).await.expect_err("it can't say");
        assert_eq!(error, ReviewError::Unavailable("away".into()));
        assert_eq!(desk.asked.load(Ordering::SeqCst), count);
    }
}
