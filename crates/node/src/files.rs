//! The files of a pod that differ from the host's: how names are found, and what's hidden. Runs in the pod's mount
//! namespace, which nobody else shares.

use std::ffi::CStr;
use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::pod::{PodError, PodNetworkSpec};

/// Where the files are while they are bound to their places; a folder that every system has. What is in it is back
/// afterwards.
const STAGING: &str = "/tmp";

/// A name service cache would answer with the host's names.
const NAME_CACHES: [&str; 2] = ["/run/nscd", "/var/run/nscd"];

/// Mounts the pod's `/etc/resolv.conf`, `/etc/hosts` and `/etc/nsswitch.conf` over the host's, and nothing over what is
/// to be hidden.
pub(crate) fn put_in_place(spec: &PodNetworkSpec) -> Result<(), PodError> {
    step("keep mounts private", || {
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
    })?;
    let mut places = Vec::new();
    for (path, content) in [
        ("/etc/resolv.conf", Some(resolv_conf(spec))),
        ("/etc/hosts", Some(hosts(spec))),
        ("/etc/nsswitch.conf", fs::read_to_string("/etc/nsswitch.conf").ok().map(|text| nsswitch_conf(&text))),
    ] {
        let Some(content) = content else { continue };
        match open_place(Path::new(path)) {
            Ok(place) => places.push((path, place, content)),
            Err(error) => tracing::warn!(pod = spec.name, path, %error, "this file stays the host's in the pod"),
        }
    }
    for path in spec.hide.iter().map(|path| path.as_path()).chain(NAME_CACHES.iter().map(Path::new)) {
        if path.is_dir() {
            step("hide a folder", || mount_empty(path, c"size=4k,mode=0555"))?;
        }
    }
    step("make a place for files", || mount_empty(Path::new(STAGING), c"size=1m,mode=0755"))?;
    let bound = places.iter().try_for_each(|(path, place, content)| bind(path, place, content));
    step("leave the place for files", || rustix::mount::unmount(STAGING, UnmountFlags::DETACH))?;
    bound
}

/// The file that is really there, symbolic links followed.
fn open_place(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn mount_empty(path: &Path, options: &CStr) -> rustix::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("ambit", path, "tmpfs", flags, options)
}

fn bind(path: &str, place: &OwnedFd, content: &str) -> Result<(), PodError> {
    let staged = Path::new(STAGING).join(path.replace('/', "-"));
    fs::write(&staged, content).map_err(|source| PodError::Files { what: format!("write `{path}`"), source })?;
    step(path, || rustix::mount::mount_bind(&staged, format!("/proc/self/fd/{}", place.as_raw_fd())))
}

fn step(what: &str, run: impl FnOnce() -> rustix::io::Result<()>) -> Result<(), PodError> {
    run().map_err(|error| PodError::Files { what: what.to_owned(), source: error.into() })
}

fn resolv_conf(spec: &PodNetworkSpec) -> String {
    let dns = &spec.dns;
    let mut text = format!("nameserver {}\n", dns.nameserver);
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    let _ = writeln!(text, "options ndots:{}", dns.ndots);
    text
}

fn hosts(spec: &PodNetworkSpec) -> String {
    let mut text =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{}\n", spec.ip, spec.name);
    for (address, names) in &spec.hosts {
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    text
}

/// The host's order of name sources with hosts looked up in files and by DNS only: others (`resolve`, `mdns`) ask a
/// daemon of the host, past the mesh.
fn nsswitch_conf(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("hosts:")).collect();
    lines.push("hosts: files dns");
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::pod::{Capture, PodDns};

    fn spec() -> PodNetworkSpec {
        PodNetworkSpec {
            name: "web".to_owned(),
            ip: Ipv4Addr::new(10, 244, 0, 7),
            capture: Capture::Mesh,
            dns: PodDns {
                nameserver: Ipv4Addr::new(10, 96, 0, 10),
                search: vec!["a.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()],
                ndots: 5,
            },
            hosts: vec![(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)), vec!["db".to_owned(), "db.local".to_owned()])],
            hide: Vec::new(),
        }
    }

    #[test]
    fn files_say_what_the_pod_was_given() {
        assert_eq!(
            resolv_conf(&spec()),
            "nameserver 10.96.0.10\nsearch a.svc.cluster.local svc.cluster.local\noptions ndots:5\n"
        );
        assert!(hosts(&spec()).ends_with("10.244.0.7\tweb\n10.0.0.9\tdb db.local\n"));
    }

    #[test]
    fn hosts_are_looked_up_in_files_and_dns_only() {
        let text = "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\ngroup: files\n";
        assert_eq!(nsswitch_conf(text), "passwd: files\ngroup: files\nhosts: files dns\n");
    }
}
