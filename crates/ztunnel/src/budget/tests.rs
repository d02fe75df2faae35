use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Waker},
    time::Duration,
};

use ambit_hbone::copy::{Reset, Timeouts, bidirectional_within};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::limits::{MAX_REFUSAL_RECORDS_PER_SECOND, SHORT_READ_BYTES};

fn config(limits: Limits) -> Config {
    Config { limits, ..Config::default() }
}

fn small() -> Limits {
    Limits {
        connections_per_pod: 3,
        connections: 6,
        handshakes_per_pod: 2,
        handshakes: 4,
        tunnels_per_pod: 1,
        tunnels: 2,
        memory_bytes_per_pod: 3 * TUNNEL_BYTES,
        memory_bytes: 8 * TUNNEL_BYTES,
        dns_queries_per_pod: 1,
        dns_queries: 2,
    }
}

/// Takes until there is no more, and gives how much that was and what ended it.
fn all<T>(mut take: impl FnMut() -> Result<T, OverBudget>) -> (Vec<T>, OverBudget) {
    let mut taken = Vec::new();
    loop {
        match take() {
            Ok(permit) => taken.push(permit),
            Err(over) => return (taken, over),
        }
    }
}

#[test]
fn each_resource_has_a_bound_per_pod_and_one_of_all() {
    let config = config(small());
    let budgets = Budgets::new(&config);
    let (one, other) = (budgets.pod(&config), budgets.pod(&config));
    let over = |resource, scope| OverBudget { resource, scope };

    let (connections, refused) = all(|| one.connection());
    assert_eq!((connections.len(), refused), (3, over(Resource::Connections, Scope::Share)));
    assert!(one.is_full() && !other.is_full());
    let (others, refused) = all(|| other.connection());
    assert_eq!((others.len(), refused), (3, over(Resource::Connections, Scope::Share)), "one pod took what all need");
    let third = budgets.pod(&config);
    assert_eq!(third.connection().err(), Some(over(Resource::Connections, Scope::Whole)));
    assert!(third.is_full());
    drop((connections, others));
    assert!(!one.is_full() && !third.is_full());

    let (handshakes, refused) = all(|| one.handshake());
    assert_eq!((handshakes.len(), refused), (2, over(Resource::Handshakes, Scope::Share)));
    let (queries, refused) = all(|| one.dns_query());
    assert_eq!((queries.len(), refused), (1, over(Resource::DnsQueries, Scope::Share)));
    assert!(other.handshake().is_ok() && other.dns_query().is_ok());

    // Tunnels hold more than streams: here memory ends first, and what was taken before it was refused is back.
    let mut two = vec![one.tunnel().expect("room"), one.tunnel().expect("room")];
    two.push(one.connection().expect("room"));
    let (streams, refused) = all(|| one.connection());
    assert_eq!((streams.len(), refused), (0, over(Resource::Connections, Scope::Share)));
    two.pop();
    assert_eq!(one.memory().used(), 2 * TUNNEL_BYTES);
    let last = one.tunnel().expect("room for a third");
    drop(two);
    assert_eq!(one.memory().used(), TUNNEL_BYTES);
    drop(last);
    assert_eq!(one.memory().used(), 0);
}

#[test]
fn memory_that_is_used_up_refuses_connections_too() {
    let limits = Limits { memory_bytes_per_pod: TUNNEL_BYTES + STREAM_BYTES, ..small() };
    let config = config(limits);
    let budget = Budgets::new(&config).pod(&config);
    let _tunnel = budget.tunnel().expect("room");
    let over = OverBudget { resource: Resource::Memory, scope: Scope::Share };
    assert_eq!(budget.tunnel().err(), Some(over));
    let stream = budget.connection().expect("room for a stream");
    assert_eq!(budget.connection().err(), Some(over));
    drop(stream);
    // The places of those that were refused for memory are free again.
    assert!(budget.connection().is_ok());
    assert_eq!(over.to_string(), "the workload is at its limit of memory");
}

#[test]
fn no_pod_may_have_more_than_half_and_every_pod_something() {
    for (whole, wanted, share) in [(10, 100, 5), (10, 2, 2), (1, 1, 1), (0, 5, 1), (10, 0, 0), (11, 11, 5)] {
        assert_eq!(super::share(&Bound::new(whole), wanted).limit(), share, "{wanted} of {whole}");
    }
}

#[test]
fn refusals_are_counted_by_budget_and_scope() {
    let config = config(Limits { connections: 4, connections_per_pod: 2, ..small() });
    let budgets = Budgets::new(&config);
    let pods: Vec<_> = (0..3).map(|_| budgets.pod(&config)).collect();
    let _held: Vec<_> = pods.iter().map(|pod| all(|| pod.connection()).0).collect();
    let text = config.metrics.encode().expect("text");
    for line in [
        "ambit_budget_used{budget=\"connections\"} 4",
        "ambit_budget_limit{budget=\"connections\"} 4",
        "ambit_budget_refused_total{budget=\"connections\",scope=\"workload\"} 2",
        "ambit_budget_refused_total{budget=\"connections\",scope=\"node\"} 1",
        "ambit_budget_limit{budget=\"memory\"} 1048576",
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    }
}

#[test]
fn a_flood_of_refusals_is_recorded_a_few_times_a_second_and_says_how_many_it_left_out() {
    let records = Records::default();
    let recorded = |second| (0..1_000).filter_map(|_| records.reason_at(second, "full")).collect::<Vec<_>>();
    let first = recorded(1);
    assert_eq!(first.len() as u64, MAX_REFUSAL_RECORDS_PER_SECOND);
    assert!(first.iter().all(|reason| reason == "full"));
    assert!(recorded(1).is_empty());
    let next = recorded(2);
    assert_eq!(next.len() as u64, MAX_REFUSAL_RECORDS_PER_SECOND);
    assert_eq!(next[0], format!("full ({} more were refused since the last record)", 2_000 - next.len()));
    assert_eq!(next[1], "full");
    // A thread that looked at the clock earlier doesn't begin the second again.
    assert!(records.reason_at(1, "full").is_none());
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.expect("a connection"), far.expect("its other end").0)
}

#[tokio::test]
async fn what_nobody_reads_is_counted_and_while_memory_is_short_little_is_taken() {
    let memory = Bound::new(1 << 20).share(512 << 10);
    let (mut writer, mut inner) = pair().await;
    let (mut unread, mut sink) = pair().await;
    writer.write_all(&[7; 200_000]).await.expect("room in the kernel");
    inner.readable().await.expect("readable");
    let mut source = Metered::new(&mut inner, &memory);
    let mut sink = Metered::new(&mut sink, &memory);
    let mut chunks = VecDeque::new();
    let taken = poll_fn(|cx| source.poll_take(cx, &mut chunks)).await.expect("bytes");
    assert!(taken > SHORT_READ_BYTES, "only {taken}");
    // The sink takes until its socket is full; what is left waits and counts.
    let waker = Waker::noop();
    let mut cx = Context::from_waker(waker);
    let chunk = Bytes::from(vec![1; 100_000]);
    let mut stuck = VecDeque::new();
    loop {
        stuck.push_back(chunk.clone());
        if sink.poll_give(&mut cx, &mut stuck).is_pending() {
            break;
        }
    }
    let waiting: usize = stuck.iter().map(Bytes::len).sum();
    assert!((waiting..waiting + (128 << 10)).contains(&memory.used()), "{} for {waiting}", memory.used());
    // Memory is used up: the next read is a small one.
    let _rest = memory.take(memory.limit() - memory.used()).expect("the rest");
    chunks.clear();
    let taken = poll_fn(|cx| source.poll_take(cx, &mut chunks)).await.expect("bytes");
    assert!(taken <= SHORT_READ_BYTES, "{taken} though memory is short");
    // Once it is read, it goes on, and nothing is counted any more.
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(1..) = unread.read(&mut buffer).await {}
    });
    while !stuck.is_empty() {
        poll_fn(|cx| sink.poll_give(cx, &mut stuck)).await.expect("it goes on");
    }
    drop(sink);
    drop(_rest);
    assert_eq!(memory.used(), 0);
    reading.abort();
}

#[tokio::test]
async fn a_connection_goes_on_while_memory_is_short() {
    let memory = Bound::new(1024);
    let _all = memory.take(1024).expect("all");
    let ((mut client, mut a), (mut b, mut server)) = (pair().await, pair().await);
    let copying = tokio::spawn(async move {
        let (mut a, mut b) = (Metered::new(&mut a, &memory), Metered::new(&mut b, &memory));
        bidirectional_within(&mut a, &mut b, Timeouts::default()).await.map_err(|error| error.to_string())
    });
    let sending = async {
        client.write_all(&vec![3; 3 << 20]).await.expect("sent");
        client.shutdown().await.expect("an end");
    };
    let receiving = async {
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.expect("received");
        drop(server);
        all.len()
    };
    let moved = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(sending, receiving).1 }).await;
    assert_eq!(moved.expect("in time"), 3 << 20);
    assert_eq!(copying.await.expect("no panic"), Ok((3 << 20, 0)));
}
