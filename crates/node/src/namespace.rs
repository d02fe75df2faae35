//! Namespaces as file descriptors: opening the calling thread's, and entering one for the length of a closure.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A kind of namespace that this crate opens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    User,
    ProcessIds,
    Network,
    Mount,
    HostName,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::User => "/proc/thread-self/ns/user",
            // The one that children are born in, which for a thread that never unshared it is also its own.
            Self::ProcessIds => "/proc/thread-self/ns/pid",
            Self::Network => "/proc/thread-self/ns/net",
            Self::Mount => "/proc/thread-self/ns/mnt",
            Self::HostName => "/proc/thread-self/ns/uts",
        }
    }

    fn of_link(self) -> LinkNameSpaceType {
        match self {
            Self::User => LinkNameSpaceType::User,
            Self::ProcessIds => LinkNameSpaceType::ProcessID,
            Self::Network => LinkNameSpaceType::Network,
            Self::Mount => LinkNameSpaceType::Mount,
            Self::HostName => LinkNameSpaceType::HostNameAndNISDomainName,
        }
    }
}

/// The calling thread's namespace of that kind.
pub(crate) fn open(kind: Kind) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(kind.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Moves the calling thread into a namespace.
pub(crate) fn enter(namespace: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(kind.of_link()))?)
}

/// Gives the calling thread new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the call is unsound only with `FILES`, which no caller in this crate passes: the file descriptor table
    // stays shared between all threads.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Runs `inside` with the calling thread in the network namespace `target`, then returns to `home`.
///
/// INVARIANT: the thread is back in `home` whenever this returns or unwinds. A thread that stayed behind would make the
/// next sockets in a pod's network, where they'd pass for that pod's; so if it can't return, the process ends.
pub(crate) fn inside_network<T>(
    target: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    inside: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    struct Return<'a>(BorrowedFd<'a>);
    impl Drop for Return<'_> {
        fn drop(&mut self) {
            if enter(self.0, Kind::Network).is_err() {
                std::process::abort();
            }
        }
    }
    enter(target, Kind::Network)?;
    let _return = Return(home.as_fd());
    inside()
}

/// What tells two namespaces apart: device and inode of the namespace file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identifier {
    device: u64,
    inode: u64,
}

impl Identifier {
    pub(crate) fn of_fd(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(namespace)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }

    /// The namespace behind a link such as `/proc/7/ns/net`.
    pub(crate) fn of_path(path: &str) -> io::Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}
