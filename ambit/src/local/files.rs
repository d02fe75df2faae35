//! How many files the node process may have open, and how many connections that allows. Connections past that are
//! refused; without the bound they would take the files that a change of policy, or another pod, needs.

use ambit_ztunnel::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than this is never asked for: some programs, which inherit it, go through all numbers below it.
const MOST: u64 = 131_072;
/// Kept for everything but connections: listeners, namespaces, pipes, manifests, logs.
const RESERVED: u64 = 128;
/// What one connection takes at most: both its sides, and its share of the tunnels.
const PER_CONNECTION: u64 = 3;

/// Raises the limit as far as this user may, and fits the node proxy's limits under it.
pub fn fit(limits: Limits) -> Limits {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.unwrap_or(MOST).min(MOST);
    let raised = Rlimit { current: Some(wanted), maximum: now.maximum };
    let current = now.current.unwrap_or(MOST);
    let open = if current < wanted && setrlimit(Resource::Nofile, raised).is_ok() { wanted } else { current };
    under(limits, open)
}

fn under(limits: Limits, files: u64) -> Limits {
    let connections = usize::try_from(files.saturating_sub(RESERVED) / PER_CONNECTION).unwrap_or(usize::MAX).max(1);
    let connections = limits.connections.min(connections);
    // No pod alone may take what all need.
    let connections_per_pod = limits.connections_per_pod.min((connections / 2).max(1));
    Limits { connections, connections_per_pod, ..limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        for files in [0, 100, 256, 1_024, 4_096, MOST] {
            let limits = under(Limits::default(), files);
            assert!((1..=Limits::default().connections).contains(&limits.connections));
            assert!(limits.connections_per_pod <= limits.connections, "{files}");
            assert!(files < 256 || limits.connections as u64 * PER_CONNECTION + RESERVED <= files, "{files}");
        }
        assert_eq!(under(Limits::default(), MOST).connections, Limits::default().connections);
    }
}
