//! What the kernel says of a pod's network, for tests that fail there.

use std::fmt::Write;
use std::io;
use std::os::fd::AsFd;

use ambit_node::PodNamespaces;
use rustix::thread::LinkNameSpaceType;

/// Lines of each kind that are shown at most.
const SHOWN: usize = 32;
/// Counters that tell why a connection isn't made.
const COUNTERS: [&str; 8] = [
    "ListenOverflows",
    "ListenDrops",
    "TCPReqQFullDrop",
    "TCPReqQFullDoCookies",
    "TCPMigrateReqSuccess",
    "TCPMigrateReqFailure",
    "TCPSynRetrans",
    "PAWSEstab",
];
/// States of a socket, as `/proc/net/tcp` has them.
const LISTEN: &str = "0A";
const PASSING: [&str; 3] = ["02", "03", "0C"];

/// Listeners with what waits at them, connections that are being made, what the kernel counted, and what its connection
/// tracking remembers of calls that nobody answered. Those follow a port to the next connection that has it.
pub(crate) fn of(pod: &PodNamespaces) -> String {
    let tables = ["tcp", "tcp6", "netstat", "nf_conntrack"].map(|name| {
        let table = read(pod, name);
        table.unwrap_or_else(|error| format!("{name} UNREPLIED can't be read: {error}\n"))
    });
    let [tcp, tcp6, netstat, tracked] = &tables;
    let mut shown = format!("network of pod `{}`:\n", pod.name());
    let sockets = || tcp.lines().chain(tcp6.lines()).map(|line| line.split_whitespace().collect::<Vec<_>>());
    for (what, states) in [("listener", &[LISTEN][..]), ("being made", &PASSING)] {
        let some = sockets().filter(|socket| socket.get(3).is_some_and(|state| states.contains(state)));
        for socket in some.take(SHOWN) {
            // Formatting into a string can't fail.
            let _ =
                writeln!(shown, "  {what}: {} from {}, queues {}", socket[1], socket[2], socket.get(4).unwrap_or(&"?"));
        }
    }
    let lines: Vec<&str> = netstat.lines().collect();
    for pair in lines.chunks_exact(2) {
        let counters = pair[0].split_whitespace().zip(pair[1].split_whitespace());
        for (name, value) in counters.filter(|(name, _)| COUNTERS.contains(name)) {
            let _ = writeln!(shown, "  {name}: {value}");
        }
    }
    for entry in tracked.lines().filter(|line| line.contains("UNREPLIED")).take(SHOWN) {
        let _ = writeln!(shown, "  unanswered: {entry}");
    }
    shown
}

/// A file below `/proc/net` of the pod.
pub(crate) fn read(pod: &PodNamespaces, name: &str) -> io::Result<String> {
    let network = pod.network();
    // Files below `/proc/net` are those of the thread's network namespace.
    std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            std::fs::read_to_string(format!("/proc/thread-self/net/{name}"))
        });
        read.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
