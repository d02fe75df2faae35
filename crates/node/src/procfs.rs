//! Processes as `/proc` lists them, whichever process namespace it was mounted for.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::Pid;

use crate::namespace::Identifier;

/// How to read process ids: `/proc` may be the host's view, then each process has one id per nested namespace and ours
/// is the one at this depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessTable {
    depth: usize,
}

// === impl ProcessTable ===

impl ProcessTable {
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let depth = namespace_ids(&status)
            .count()
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("`/proc/self/status` has no `NSpid`"))?;
        Ok(Self { depth })
    }

    /// The processes of this process namespace whose network namespace is `network`, by their ids here.
    pub(crate) fn in_network(&self, network: BorrowedFd<'_>) -> io::Result<Vec<Pid>> {
        let wanted = Identifier::of_fd(network)?;
        self.find(|number| Identifier::of_path(&format!("/proc/{number}/ns/net")).is_ok_and(|found| found == wanted))
    }

    /// All processes of this process namespace but this one.
    pub(crate) fn others(&self) -> io::Result<Vec<Pid>> {
        self.find(|number| fs::read_to_string(format!("/proc/{number}/stat")).is_ok_and(|stat| !is_zombie(&stat)))
    }

    fn find(&self, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Pid>> {
        let own = std::process::id();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if !name.bytes().all(|byte| byte.is_ascii_digit()) || !wanted(&name) {
                continue;
            }
            // Gone since, or outside of this process namespace.
            let Ok(status) = fs::read_to_string(format!("/proc/{name}/status")) else { continue };
            let Some(id) = namespace_ids(&status).nth(self.depth) else { continue };
            if u32::try_from(id) != Ok(own) {
                found.extend(Pid::from_raw(id));
            }
        }
        Ok(found)
    }
}

/// A process's ids, from the namespace that `/proc` was mounted for inwards.
fn namespace_ids(status: &str) -> impl Iterator<Item = i32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|id| id.parse().ok())
}

/// The state follows the name, which may itself hold any character, parentheses too.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, rest)| matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_id_at_each_depth() {
        let status = "Name:\tsh\nNSpid:\t4321\t17\t1\nVmPeak: 1\n";
        assert_eq!(namespace_ids(status).collect::<Vec<_>>(), [4321, 17, 1]);
        assert_eq!(namespace_ids("Name:\tsh\n").count(), 0);
    }

    #[test]
    fn a_name_with_parentheses_hides_no_state() {
        assert!(is_zombie("12 (a) b) Z 1 2"));
        assert!(!is_zombie("12 (Z) S 1 2"));
    }

    #[test]
    fn finds_this_network_but_not_itself() {
        let table = ProcessTable::of_this_process().expect("/proc is there");
        let own = crate::namespace::open(crate::namespace::Kind::Network).expect("own namespace");
        let found = table.in_network(std::os::fd::AsFd::as_fd(&own)).expect("listed");
        let own_pid = i32::try_from(std::process::id()).expect("fits");
        assert!(found.iter().all(|pid| pid.as_raw_nonzero().get() != own_pid));
    }
}
