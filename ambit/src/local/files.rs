//! How much of this machine a proxy's connections may take: files, and memory. Connections past that are refused;
//! without the bound they would take what a change of policy, or another pod, needs.

use ambit_ztunnel::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than this is never asked for: some programs, which inherit it, go through all numbers below it.
const MOST: u64 = 131_072;
/// Kept for logs, pipes, manifests, operators and the control plane.
const RESERVED: u64 = 128;
/// Of all files, the share kept for pods: a dozen each, for their listeners and namespaces.
const PODS_SHARE: u64 = 8;
/// As many pods as the share is for at most.
const MOST_FOR_PODS: u64 = 12 * 512;
/// What one connection takes at most: both its sides, and a further one while another endpoint is tried.
const PER_CONNECTION: u64 = 3;
/// Where the kernel says how much memory the container may use: in its own namespace, and in the older hierarchy.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
/// Of the container's memory, the share that connections may hold.
const MEMORY_SHARE: u64 = 2;

/// Of a waypoint, how many files one client's connection takes: itself, and what its tunnels lead to.
const PER_CLIENT: u64 = 4;
/// How much memory one client's connection holds at most while it is idle, and how much each tunnel more.
const CLIENT_BYTES: u64 = 64 << 10;
const TUNNEL_BYTES: u64 = 32 << 10;

/// How much this machine and container give a waypoint's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Connections.
    pub connections: usize,
    /// Tunnels in them.
    pub tunnels: usize,
}

/// Raises the limit of open files as far as this user may, and fits the node proxy's limits under it, and under the
/// container's memory.
pub fn fit(limits: Limits) -> Limits {
    let (open, memory) = given();
    within(under(limits, open), memory)
}

/// Raises the limit of open files as far as this user may, and says how much there is for a waypoint's clients. A quarter of
/// the container's memory is for their connections, a quarter for the tunnels in them, the rest for what they carry.
pub fn room() -> Room {
    let (open, memory) = given();
    room_in(open, memory)
}

fn room_in(files: u64, memory: Option<u64>) -> Room {
    let memory = memory.unwrap_or(u64::MAX) / (2 * MEMORY_SHARE);
    let connections = (files.saturating_sub(RESERVED) / PER_CLIENT).min(memory / CLIENT_BYTES);
    Room { connections: count(connections), tunnels: count(memory / TUNNEL_BYTES) }
}

/// Files that may be open, after raising their limit, and the container's memory if that is limited.
fn given() -> (u64, Option<u64>) {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.unwrap_or(MOST).min(MOST);
    let raised = Rlimit { current: Some(wanted), maximum: now.maximum };
    let current = now.current.unwrap_or(MOST);
    let open = if current < wanted && setrlimit(Resource::Nofile, raised).is_ok() { wanted } else { current };
    let texts = MEMORY_LIMITS.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    // A number for each; without a limit it's a word, or larger than any memory.
    (open, texts.filter_map(|text| text.trim().parse().ok()).min())
}

fn under(limits: Limits, files: u64) -> Limits {
    let reserved = RESERVED.saturating_add((files / PODS_SHARE).min(MOST_FOR_PODS));
    let left = files.saturating_sub(reserved);
    // A query to a resolver takes a socket.
    let queries = limits.dns_queries.min(count(left / 8));
    let connections = limits.connections.min(count((left - (queries as u64).min(left)) / PER_CONNECTION));
    Limits { connections, dns_queries: queries, ..limits }
}

fn within(limits: Limits, memory: Option<u64>) -> Limits {
    let most = memory.map_or(usize::MAX, |memory| count(memory / MEMORY_SHARE));
    Limits { memory_bytes: limits.memory_bytes.min(most), ..limits }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        for files in [0, 100, 256, 1_024, 4_096, 20_000, MOST] {
            let limits = under(Limits::default(), files);
            assert!((1..=Limits::default().connections).contains(&limits.connections));
            let taken = limits.connections as u64 * PER_CONNECTION + limits.dns_queries as u64;
            let pods = (files / PODS_SHARE).min(MOST_FOR_PODS);
            assert!(files < 256 || taken + RESERVED + pods <= files, "{files}: {taken}");
        }
        assert_eq!(under(Limits::default(), MOST), Limits::default());
    }

    #[test]
    fn connections_hold_half_of_a_containers_memory_at_most() {
        let default = Limits::default();
        for (memory, bytes) in [
            (None, default.memory_bytes),
            (Some(256 << 20), 128 << 20),
            (Some(u64::MAX), default.memory_bytes),
            (Some(0), 1),
        ] {
            assert_eq!(within(default, memory).memory_bytes, bytes, "{memory:?}");
        }
    }

    #[test]
    fn a_waypoints_clients_leave_files_and_memory_for_what_they_carry() {
        for (files, memory, connections, tunnels) in [
            (MOST, None, (MOST - RESERVED) / PER_CLIENT, u64::MAX / 4 / TUNNEL_BYTES),
            (1_024, None, (1_024 - RESERVED) / PER_CLIENT, u64::MAX / 4 / TUNNEL_BYTES),
            (MOST, Some(256 << 20), 1_024, 2_048),
            (0, Some(0), 1, 1),
        ] {
            let room = Room { connections: count(connections), tunnels: count(tunnels) };
            assert_eq!(room_in(files, memory), room, "{files} files, {memory:?} bytes");
        }
    }
}
