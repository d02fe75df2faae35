//! One replica writes at a time, and another takes over when it is gone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_control_plane::authority::{Leadership, LeadershipSettings};
use ambit_identity::SystemClock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, eventually};

const DURATION: Duration = Duration::from_secs(3);

struct Replica {
    leadership: Leadership,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(cluster: &Cluster, name: &str, number: usize) -> Self {
        let settings = LeadershipSettings {
            duration: DURATION,
            renew_within: Duration::from_secs(2),
            retry: Duration::from_millis(200),
            ..LeadershipSettings::new("leaders", name, &format!("replica-{number}"))
        };
        let stop = CancellationToken::new();
        let (leadership, task) =
            Leadership::start(cluster.client.clone(), settings, Arc::new(SystemClock), stop.clone());
        Self { leadership, stop, task }
    }
}

/// Who leads; never more than one.
fn leader(replicas: &[Replica]) -> Option<usize> {
    let mut leading = (0..replicas.len()).filter(|&number| replicas[number].leadership.is_leader());
    let first = leading.next();
    // The two looks aren't at one moment: whoever was first may have stepped down since.
    if let (Some(first), Some(second)) = (first, leading.next()) {
        assert!(!replicas[first].leadership.is_leader(), "{first} and {second} lead");
    }
    first
}

async fn someone_leads(replicas: &[Replica]) -> usize {
    eventually("someone leads", async || leader(replicas).is_some()).await;
    leader(replicas).expect("it leads for longer than this takes")
}

pub async fn one_leads_at_a_time(cluster: &Cluster) {
    cluster.run(&["create", "namespace", "leaders"]);
    let replicas: Vec<_> = (0..3).map(|number| Replica::start(cluster, "one", number)).collect();
    let first = someone_leads(&replicas).await;
    let holder = cluster.json(&["get", "lease", "one", "-n", "leaders", "-o", "json"]);
    assert_eq!(holder["spec"]["holderIdentity"], format!("replica-{first}"));

    // Killed: it gives nothing back, so the others wait until its Lease has stood still.
    let mut told = replicas[first].leadership.changed();
    let (killed, start) = (replicas[first].leadership.clone(), Instant::now());
    replicas[first].task.abort();
    told.wait_for(|leads| !leads).await.expect("told before it is gone");
    assert!(!killed.is_leader());
    let second = someone_leads(&replicas).await;
    assert_ne!(second, first);
    assert!(start.elapsed() >= DURATION - Duration::from_secs(1), "too early: {:?}", start.elapsed());

    // An orderly end: the Lease is free at once.
    replicas[second].stop.cancel();
    eventually("it has ended", async || replicas[second].task.is_finished()).await;
    assert!(!replicas[second].leadership.is_leader());
    let third = someone_leads(&replicas).await;
    assert!(third != first && third != second);
    let lease = cluster.json(&["get", "lease", "one", "-n", "leaders", "-o", "json"]);
    assert_eq!(lease["spec"]["leaseTransitions"], 3);

    // Somebody takes it away: who led gives up, and waits like others do.
    let taken = r#"{"spec":{"holderIdentity":"somebody","leaseDurationSeconds":2}}"#;
    cluster.run(&["patch", "lease", "one", "-n", "leaders", "--type=merge", "-p", taken]);
    eventually("it gives up", async || leader(&replicas).is_none()).await;
    assert_eq!(someone_leads(&replicas).await, third);
    replicas[third].stop.cancel();
}

pub async fn nobody_leads_without_an_api_server(cluster: &mut Cluster) {
    // Alone, so that it is the same one that leads again.
    let replicas = [Replica::start(cluster, "two", 0)];
    let mut told = replicas[0].leadership.changed();
    someone_leads(&replicas).await;
    let start = Instant::now();
    cluster.server.interrupt();
    eventually("nobody leads", async || leader(&replicas).is_none()).await;
    assert!(start.elapsed() < DURATION, "it stepped down too late: {:?}", start.elapsed());
    told.wait_for(|leads| !leads).await.expect("told");
    cluster.server.resume().expect("it starts again");
    someone_leads(&replicas).await;
}
