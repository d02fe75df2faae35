use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use proptest::prelude::*;
use tokio::runtime::Builder;

use super::*;
use crate::limits::FREE_BYTES;

proptest! {
    /// Any order of taking and giving back, against a model: no share and no whole is ever over its bound, a refusal
    /// has its reason, and in the end all is back.
    #[test]
    fn permits_never_exceed_their_bounds_and_all_come_back(
        whole in 0_usize..40,
        shares in prop::collection::vec(0_usize..20, 1..4),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..8, any::<bool>()), 0..200),
    ) {
        let all = Bound::new(whole);
        let bounds: Vec<_> = shares.iter().map(|limit| all.share(*limit)).collect();
        let mut held: Vec<Vec<Permit>> = bounds.iter().map(|_| Vec::new()).collect();
        let mut refused = (0, 0);
        for (which, amount, takes) in steps {
            let place = which.index(bounds.len());
            let sum = |permits: &Vec<Permit>| permits.iter().map(|permit| permit.amount).sum::<usize>();
            if takes {
                let own = sum(&held[place]);
                let total: usize = held.iter().map(sum).sum();
                match bounds[place].take(amount) {
                    Ok(permit) => {
                        prop_assert!(own + amount <= shares[place] && total + amount <= whole);
                        held[place].push(permit);
                    }
                    Err(Scope::Share) => {
                        prop_assert!(own + amount > shares[place]);
                        refused.0 += 1;
                    }
                    Err(Scope::Whole) => {
                        prop_assert!(own + amount <= shares[place] && total + amount > whole);
                        refused.1 += 1;
                    }
                }
            } else {
                held[place].pop();
            }
            for (bound, permits) in bounds.iter().zip(&held) {
                prop_assert_eq!(bound.used(), sum(permits));
            }
            prop_assert_eq!(all.used(), held.iter().map(sum).sum::<usize>());
            prop_assert_eq!(all.refused(), refused);
        }
        drop(held);
        prop_assert_eq!((all.used(), bounds.iter().map(|bound| bound.used()).sum::<usize>()), (0, 0));
    }

    /// What is held is counted to the quantum, what is small is not, and the end of a connection gives all back.
    #[test]
    fn a_charge_follows_what_is_held(steps in prop::collection::vec(0_usize..1 << 21, 0..100)) {
        let all = Bound::new(1 << 20);
        let own = all.share(1 << 19);
        let mut charge = Charge::new(Some(Arc::clone(&own)), FREE_BYTES);
        for bytes in steps {
            charge.hold(bytes);
            prop_assert_eq!(own.used(), all.used());
            if bytes <= FREE_BYTES {
                prop_assert_eq!(own.used(), 0);
            } else {
                prop_assert!((bytes..bytes + 3 * QUANTUM_BYTES).contains(&own.used()), "{} for {bytes}", own.used());
            }
            prop_assert_eq!(charge.is_short(), own.used() >= 1 << 19);
        }
        drop(charge);
        prop_assert_eq!((own.used(), all.used()), (0, 0));
    }
}

#[test]
fn threads_that_race_for_the_last_places_never_get_too_many() {
    const THREADS: usize = 4;
    let all = Bound::new(5);
    let shares: Vec<_> = (0..THREADS).map(|number| all.share(if number % 2 == 0 { 2 } else { 9 })).collect();
    let (inside, start) = (AtomicUsize::new(0), Barrier::new(THREADS));
    thread::scope(|scope| {
        for share in &shares {
            scope.spawn(|| {
                start.wait();
                for round in 0..20_000 {
                    let Ok(permit) = share.take(1 + round % 2) else { continue };
                    let now = inside.fetch_add(permit.amount, Ordering::SeqCst) + permit.amount;
                    assert!(now <= 5, "{now} of 5 are taken");
                    inside.fetch_sub(permit.amount, Ordering::SeqCst);
                    drop(permit);
                }
            });
        }
    });
    assert_eq!(all.used(), 0);
    assert!(shares.iter().all(|share| share.used() == 0));
}

#[test]
fn handshakes_are_computed_in_turn_elsewhere_and_those_that_wait_take_none() {
    static AT_ONCE: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    static HERE: AtomicBool = AtomicBool::new(false);
    let elsewhere = Builder::new_multi_thread().worker_threads(3).thread_name("elsewhere").enable_all().build();
    let elsewhere = elsewhere.expect("a runtime");
    let turns = Turns::on([elsewhere.handle().clone()].into(), 1);
    let busy = || {
        let now = AT_ONCE.fetch_add(1, Ordering::SeqCst) + 1;
        MOST.fetch_max(now, Ordering::SeqCst);
        HERE.fetch_or(thread::current().name() != Some("elsewhere"), Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1));
        AT_ONCE.fetch_sub(1, Ordering::SeqCst);
    };
    let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
    here.block_on(async {
        // A peer that never answers holds no turn: the others get theirs.
        let stalled = turns.run(async { std::future::pending::<()>().await });
        let others = (0..8).map(|_| {
            turns.run(async move {
                busy();
                tokio::task::yield_now().await;
                busy();
            })
        });
        let others = futures_util::future::join_all(others);
        tokio::select! {
            _ = stalled => panic!("it never ends"),
            outcomes = others => assert!(outcomes.iter().all(Result::is_ok)),
        }
    });
    assert_eq!(MOST.load(Ordering::SeqCst), 1, "more than one had a turn");
    assert!(!HERE.load(Ordering::SeqCst), "one was computed here");
    elsewhere.shutdown_background();
    assert_eq!(here.block_on(turns.run(async {})), Err(Ended));
}

#[test]
fn handshakes_go_to_where_there_is_less_to_do() {
    let runtime = |name: &str| {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();
        runtime.expect("a runtime")
    };
    let places = ["one", "two"].map(runtime);
    let turns = Turns::on(places.iter().map(|place| place.handle().clone()).collect(), 8);
    let (sender, mut names) = tokio::sync::mpsc::unbounded_channel();
    let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
    here.block_on(async {
        let _stays = places[0].spawn(std::future::pending::<()>());
        for _ in 0..4 {
            let sender = sender.clone();
            let done = turns.run(async move {
                sender.send(thread::current().name().map(str::to_owned)).expect("somebody listens");
            });
            assert_eq!(done.await, Ok(()));
            assert_eq!(names.recv().await.expect("one"), Some("two".to_owned()), "the other has a task");
            // A task that has told its outcome is counted for a moment longer.
            while places[1].metrics().num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
        }
        // Without any place they are computed here.
        let nowhere = Turns::on([].into(), 8);
        let name = nowhere.run(async { thread::current().name().map(str::to_owned) });
        assert_eq!(name.await, Ok(thread::current().name().map(str::to_owned)));
    });
}
