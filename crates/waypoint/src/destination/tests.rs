use std::{collections::HashSet, net::SocketAddr, time::Duration};

use ambit_mesh::view::destinations::{HashBy, Limits};
use http::Request;

use super::{
    hash,
    lease::{Lease, Slot},
};

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

/// Which of these endpoints a request belongs to.
fn owner(request: u64, endpoints: &[(u8, u32)]) -> u8 {
    let score = |(last, weight): &(u8, u32)| hash::score(request, hash::of_endpoint(address(*last)), *weight);
    endpoints.iter().max_by(|one, other| score(one).total_cmp(&score(other))).expect("some").0
}

fn by_header(value: &str) -> u64 {
    let request = Request::builder().header("x-user", value).body(()).expect("a request");
    let by = HashBy::Header(http::HeaderName::from_static("x-user"));
    hash::of_request(&by, &request, [10, 0, 0, 1].into()).expect("a value")
}

#[test]
fn values_are_spread_by_weight_and_only_the_share_of_who_leaves_moves() {
    let all = [(1, 1), (2, 1), (3, 2)];
    let mut counts = [0_usize; 4];
    for user in 0..4_000 {
        let value = by_header(&format!("user-{user}"));
        let mine = owner(value, &all);
        counts[usize::from(mine)] += 1;
        if mine != 3 {
            assert_eq!(owner(value, &all[..2]), mine);
        }
    }
    // Expected 1000, 1000 and 2000; five standard deviations are 140 and 160.
    assert!((860..1140).contains(&counts[1]) && (860..1140).contains(&counts[2]), "{counts:?}");
    assert!((1840..2160).contains(&counts[3]), "{counts:?}");
}

#[test]
fn a_request_is_assigned_by_the_value_that_is_meant() {
    let request = Request::builder()
        .uri("/p?users=9&user=7&user=8")
        .header("cookie", "a=1; users=3")
        .header("cookie", "user=7;b")
        .body(())
        .expect("a request");
    let of = |by: &HashBy| hash::of_request(by, &request, [10, 0, 0, 1].into());
    let seven = of(&HashBy::Query("user".into()));
    assert_eq!(of(&HashBy::Cookie("user".into())), seven, "the same value");
    assert_eq!(seven, Some(by_header("7")));
    let others = [HashBy::Query("users".into()), HashBy::Cookie("a".into()), HashBy::Source];
    let numbers: HashSet<_> = others.iter().map(of).chain([seven]).collect();
    assert_eq!(numbers.len(), 4);
    assert_eq!([of(&HashBy::Query("b".into())), of(&HashBy::Cookie("b".into()))], [None, None]);
}

#[tokio::test]
async fn a_connection_in_use_is_not_closed_for_want_of_room() {
    let lease = Lease::new(&Limits::default(), Slot::default(), None);
    let held = lease.begin().expect("open");
    assert!(!lease.close_if_idle());
    drop(held);
    assert!(lease.close_if_idle());
    assert!(lease.begin().is_none() && !lease.lasts());
    let limits = Limits { requests_per_connection: Some(2), ..Limits::default() };
    let lease = Lease::new(&limits, Slot::default(), None);
    let (first, second) = (lease.begin(), lease.begin());
    assert!(first.is_some() && second.is_some() && !lease.lasts());
    assert!(lease.begin().is_none());
    let limits = Limits { http_idle_timeout: Some(Some(Duration::from_millis(1))), ..Limits::default() };
    let lease = Lease::new(&limits, Slot::default(), None);
    let silent = lease.clone().hold(std::future::pending::<()>());
    tokio::time::timeout(Duration::from_secs(10), silent).await.expect("closed for its silence");
}
