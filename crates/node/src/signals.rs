//! Signals as something to read: blocked for the process, delivered through a file descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// A set of blocked signals, read through a descriptor. Dropping it restores the mask.
#[derive(Debug)]
pub(crate) struct BlockedSignals {
    fd: OwnedFd,
    before: Mask,
}

/// One signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Its number.
    pub(crate) number: i32,
    /// The kernel sent it (a terminal's Ctrl-C, say), so it went to the whole process group.
    pub(crate) from_kernel: bool,
}

/// A signal mask as it was.
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

// === impl BlockedSignals ===

impl BlockedSignals {
    /// Blocks `numbers` in the calling thread (the only one, or those made from it) and opens the descriptor.
    pub(crate) fn block(numbers: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises `set`; the pointers are to live, properly typed locals;
        // `pthread_sigmask` fills `before` when it returns 0.
        let (set, before) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for number in numbers {
                libc::sigaddset(&mut set, *number);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, before.as_mut_ptr()) {
                0 => (set, before.assume_init()),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: `set` is an initialised signal set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            Mask(before).restore();
            return Err(error);
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, before: Mask(before) })
    }

    /// The mask before, for a child to restore.
    pub(crate) fn mask_before(&self) -> Mask {
        self.before
    }

    /// The next signal that arrived, `None` if there's none now.
    pub(crate) fn next(&self) -> Option<Arrived> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let length = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as long as said, and the kernel writes whole `signalfd_siginfo` records only.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), length) };
        if usize::try_from(read) != Ok(length) {
            return None;
        }
        // SAFETY: the kernel filled the record, and any bit pattern is a valid `signalfd_siginfo`.
        let info = unsafe { info.assume_init() };
        // SI_KERNEL, which the libc crate doesn't name on every target.
        const SENT_BY_KERNEL: i32 = 0x80;
        Some(Arrived { number: i32::try_from(info.ssi_signo).ok()?, from_kernel: info.ssi_code == SENT_BY_KERNEL })
    }
}

impl AsFd for BlockedSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        self.before.restore();
    }
}

// === impl Mask ===

impl Mask {
    /// Makes this the calling thread's mask.
    pub(crate) fn restore(&self) {
        // SAFETY: the set was filled by `pthread_sigmask`; a null pointer says that the old mask isn't wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The process that asked, with the new one's id as seen by it.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Proof that the process had one thread when it was made. It stays true: whoever holds it makes none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SingleThreaded(());

impl SingleThreaded {
    /// # Errors
    /// When the process has more threads, or `/proc` doesn't say.
    pub(crate) fn check() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.take(2).count() {
            1 => Ok(Self(())),
            _ => Err(io::Error::other("the process already has more than one thread")),
        }
    }

    /// Forks; the child goes on as a whole program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn fork(self) -> io::Result<Fork> {
        // SAFETY: with a single thread no lock is held by another one that wouldn't exist in the child, so the child may
        // allocate and go on as a whole program.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(Fork::Child),
            pid => Pid::from_raw(pid).map(Fork::Parent).ok_or_else(|| io::Error::other("fork gave no id")),
        }
    }
}

/// Ends this process at once, without the exit handlers that belong to the process it was forked from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(code) }
}

/// The exit code a shell would give for a wait status: the program's own, or 128 and the signal's number.
pub(crate) fn shell_code(status: rustix::process::WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code & 0xff).unwrap_or(1)
}
