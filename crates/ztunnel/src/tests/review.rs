//! What a change of configuration does to live connections: those it denies end at once, the others' bytes go on.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use http::HeaderMap;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{
    fixture::{
        PATIENCE, World, allow, application, at, echo, endpoint, greeting, guarded, id, ip, pod, policy, push, service,
        waypoint,
    },
    inbound::{captured, connect},
};
use crate::{guard::Caller, tracking::What};

/// How fast a change has to bite.
const PROMPT: Duration = Duration::from_millis(100);
/// Changes that are timed. The middle one counts: a busy machine may hold up any one of them.
const ROUNDS: usize = 5;

/// A connection whose bytes go back and forth all the time, until it is asked how many times they did.
struct Flow {
    stop: oneshot::Sender<()>,
    task: JoinHandle<usize>,
}

impl Flow {
    fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(mut stream: S) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut times = 0;
            while stopped.try_recv().is_err() {
                echo(&mut stream).await;
                times += 1;
            }
            times
        });
        Self { stop, task }
    }

    /// Fails if the connection was touched.
    async fn went_on(self) {
        self.stop.send(()).expect("it goes on");
        let times = timeout(PATIENCE, self.task).await.expect("in time").expect("every byte came back");
        assert!(times > 0, "bytes went back and forth");
    }
}

/// How long it takes until the stream is broken. A finished one would look like a whole answer.
async fn broken<S: AsyncRead + Unpin>(stream: &mut S, since: Instant) -> Duration {
    let mut byte = [0; 1];
    let ended = timeout(PATIENCE, stream.read(&mut byte)).await.expect("cut in time");
    assert!(ended.is_err(), "reset, not finished: {ended:?}");
    since.elapsed()
}

fn assert_prompt(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!("{what}: cut after {:?}, at most {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert!(times[times.len() / 2] < PROMPT, "{what}: {times:?}");
}

async fn tunnel(world: &World, account: &str, from: &str, target: SocketAddr) -> ambit_hbone::Tunnel {
    let (to, authority) = (target.ip().to_string(), target.to_string());
    let mut tunnel = connect(world, account, from, &to, &authority, HeaderMap::new()).await.expect("let in");
    greeting(&mut tunnel).await;
    tunnel
}

#[tokio::test]
async fn inbound_tunnels() {
    let mut world = World::new();
    let app = pod("app", "127.77.91.2");
    push(&world.store, &[&app], &[]);
    policy(&world.store, "who", &allow(&["one", "two"]));
    world.serve(&app);
    let target = application(ip("127.77.91.2")).await;
    let flow = Flow::start(tunnel(&world, "two", "127.77.91.6", target).await);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut one = tunnel(&world, "one", "127.77.91.5", target).await;
        echo(&mut one).await;
        let since = Instant::now();
        policy(&world.store, "who", &allow(&["two"]));
        times.push(broken(&mut one, since).await);
        let denied = world.record_that(|record| record.verdict == Verdict::Deny).await;
        assert!(denied.reason.starts_with("policy changed: "), "{}", denied.reason);
        let facts = denied.connection.expect("what it was");
        assert_eq!((facts.received_bytes, facts.sent_bytes), (4, 6));
        assert_eq!(facts.error.as_deref(), Some("connection closed due to policy change"));
        policy(&world.store, "who", &allow(&["one", "two"]));
    }
    flow.went_on().await;
    assert_prompt("inbound HBONE", times);
}

#[tokio::test]
async fn inbound_plaintext() {
    let mut world = World::new();
    let app = pod("app", "127.77.92.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let (kept, cut) = (application(ip("127.77.92.2")).await, application(ip("127.77.92.2")).await);
    let with_port =
        |port: u16| format!(r#"{{"action":"DENY","rules":[{{"to":[{{"operation":{{"ports":["{port}"]}}}}]}}]}}"#);
    policy(&world.store, "closed", &with_port(1));
    let mut stream = captured(&world, kept).await;
    greeting(&mut stream).await;
    let flow = Flow::start(stream);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut stream = captured(&world, cut).await;
        greeting(&mut stream).await;
        let since = Instant::now();
        policy(&world.store, "closed", &with_port(cut.port()));
        times.push(broken(&mut stream, since).await);
        let denied = world.record_that(|record| record.verdict == Verdict::Deny).await;
        assert_eq!(denied.policy.map(|policy| policy.to_string()).as_deref(), Some("ns/closed"));
        assert_eq!(denied.rule, Some(0));
        policy(&world.store, "closed", &with_port(1));
    }
    flow.went_on().await;
    assert_prompt("inbound plaintext", times);
}

#[tokio::test]
async fn connections_that_a_waypoint_carries_for_others() {
    let mut world = World::new();
    let target = application(ip("127.77.93.2")).await;
    let app = guarded(endpoint(pod("app", "127.77.93.2"), "app", 80, target.port()), "app", target.port(), "wp");
    let services = [&service("app", &["10.96.0.2"], 80, Some("wp")), &service("wp", &["10.96.0.3"], 15008, None)];
    push(&world.store, &[&app, &waypoint("wp", "127.77.93.3")], &services);
    world.serve(&app);
    let (to, authority) = (target.ip().to_string(), target.to_string());
    let carried = async |account: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("ambit-source", id(account).to_string().parse().expect("a value"));
        let mut tunnel = connect(&world, "wp", "127.77.93.3", &to, &authority, headers).await.expect("let in");
        greeting(&mut tunnel).await;
        tunnel
    };
    policy(&world.store, "who", &allow(&["one", "two"]));
    let flow = Flow::start(carried("two").await);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut one = carried("one").await;
        let since = Instant::now();
        policy(&world.store, "who", &allow(&["two"]));
        times.push(broken(&mut one, since).await);
        policy(&world.store, "who", &allow(&["one", "two"]));
    }
    flow.went_on().await;
    assert_prompt("carried by a waypoint", times);

    // The waypoint's address is another's now: who speaks from there speaks for nobody.
    let mut one = carried("one").await;
    let since = Instant::now();
    push(&world.store, &[&waypoint("wp", "127.77.93.4")], &[]);
    let time = broken(&mut one, since).await;
    println!("a waypoint that moved: cut after {time:?}");
    let denied = world.record_that(|record| record.enforcer == Enforcer::WaypointGuard).await;
    assert!(denied.reason.starts_with("policy changed: "), "{}", denied.reason);
}

#[tokio::test]
async fn outbound_connections_whose_waypoint_changes() {
    let mut world = World::new();
    let plain = |name: &str, ip: &str| ambit_xds::workload::Workload { tunnel_protocol: 0, ..pod(name, ip) };
    let (kept, moved) = (application(ip("127.77.94.2")).await, application(ip("127.77.94.3")).await);
    let one = endpoint(plain("one", "127.77.94.2"), "one", 80, kept.port());
    let two = endpoint(plain("two", "127.77.94.3"), "two", 80, moved.port());
    let client = pod("client", "127.77.94.5");
    let direct = service("two", &["10.96.0.3"], 80, None);
    push(&world.store, &[&one, &two, &client], &[&service("one", &["10.96.0.2"], 80, None), &direct]);
    world.serve(&client);
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    greeting(&mut stream).await;
    let flow = Flow::start(stream);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut stream = world.enter(&client, at("10.96.0.3:80")).await;
        greeting(&mut stream).await;
        let since = Instant::now();
        push(&world.store, &[], &[&service("two", &["10.96.0.3"], 80, Some("wp"))]);
        times.push(broken(&mut stream, since).await);
        let denied = world.record_that(|record| record.verdict == Verdict::Deny).await;
        assert!(denied.reason.contains("have to use waypoint `ns/wp` now"), "{}", denied.reason);
        assert_eq!(denied.destination.service.as_deref(), Some("ns/two"));
        push(&world.store, &[], &[&direct]);
    }
    flow.went_on().await;
    assert_prompt("outbound", times);
}

/// As many connections as a pod may have, all denied at once; their sockets left out, which are the transport's matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_full() {
    let world = World::new();
    let app = pod("app", "127.77.96.2");
    push(&world.store, &[&app], &[]);
    policy(&world.store, "who", &allow(&["one", "two"]));
    world.serve(&app);
    let served = world.ztunnel.pod(&app.uid).expect("the pod");
    let caller = |account: &str| Caller { peer: Some(id(account)), address: at("127.77.96.5:1"), claims: None };
    let track = |account: &str| {
        let what = What::Inbound { caller: caller(account), destination: at("127.77.96.2:80") };
        served.tracked.track(what)
    };
    let full = crate::Limits::default().connections_per_pod;
    let kept = track("two");
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let tickets: Vec<_> = (1..full).map(|_| track("one")).collect();
        let since = Instant::now();
        policy(&world.store, "who", &allow(&["two"]));
        for ticket in &tickets {
            timeout(PATIENCE, ticket.ended()).await.expect("cut");
        }
        times.push(since.elapsed());
        policy(&world.store, "who", &allow(&["one", "two"]));
    }
    assert!(kept.ending().is_none(), "what is allowed isn't touched");
    times.sort_unstable();
    println!("{full} connections: cut after {:?}, at most {:?}", times[ROUNDS / 2], times[ROUNDS - 1]);
    // Unoptimised, and beside other tests, it takes several times as long as in the field.
    assert!(times[0] < 10 * PROMPT, "{times:?}");
}

/// Whatever else changes, and however often, what is allowed isn't touched.
#[tokio::test]
async fn many_changes_that_concern_nobody() {
    let world = World::new();
    let app = pod("app", "127.77.95.2");
    let client = pod("client", "127.77.95.5");
    push(&world.store, &[&app, &client], &[]);
    policy(&world.store, "who", &allow(&["client"]));
    world.serve(&app);
    world.serve(&client);
    let target = application(ip("127.77.95.2")).await;
    let mut stream = world.enter(&client, target).await;
    greeting(&mut stream).await;
    let flow = Flow::start(stream);
    for round in 0..100 {
        policy(&world.store, "other", &allow(&["client", &format!("account-{round}")]));
        push(&world.store, &[&pod(&format!("other-{}", round % 5), "127.77.95.9")], &[]);
        tokio::task::yield_now().await;
    }
    flow.went_on().await;
}
