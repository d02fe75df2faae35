//! The split into host process and node process (`ambit up`).
//!
//! ```text
//!   ambit up ── host process: the user's namespaces; makes sockets for the node, passes signals on
//!      └─ launcher: waits, so that the node can be PID 1 of its own process namespace
//!           └─ node process (PID 1): user, network, mount and process namespaces of its own; everything else
//! ```
//!
//! Each one dies with its parent (parent death signal), and the process namespace dies with the node process, so however
//! the host process ends, nothing is left: the kernel removes namespaces, links and processes.

mod error;
mod process;
mod sockets;

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, UnshareFlags};

pub use error::{LaunchError, Step};
pub use process::HostProcess;
pub use sockets::{HostSockets, Shutdown, ShutdownSignals};

use crate::namespace;
use crate::signals::{BlockedSignals, Fork, SingleThreaded, exit_now, shell_code};

/// The user a mesh belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Effective user id; the same number inside and outside of the user namespace.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// The mesh has a user namespace of its own.
    pub user_namespace: bool,
    /// The host process's id in the host's process namespace, for messages.
    pub host_pid: u32,
}

/// Which of the two this process is after [`launch`].
#[derive(Debug)]
pub enum Role {
    /// The one that was started. Call [`HostProcess::run`] and exit with what it returns.
    Host(HostProcess),
    /// The one that lives in namespaces of its own and does the work.
    Node(NodeProcess),
}

/// What the node process needs from the host process.
#[derive(Debug)]
pub struct NodeProcess {
    /// Makes sockets in the host's network.
    pub host: Arc<HostSockets>,
    /// Tells when to stop.
    pub shutdown: ShutdownSignals,
    /// Whom the mesh belongs to.
    pub owner: Owner,
}

/// Splits the program into host process and node process. Returns once in each.
///
/// Call it at the start of `main`, before any thread exists (so before an async runtime). When the namespaces can't be
/// made there's no node process, and the host process gets the error.
///
/// # Errors
/// When the process has threads already, or the kernel refuses a namespace; the message names the setting.
pub fn launch() -> Result<Role, LaunchError> {
    let local = |source| LaunchError::local(Step::Fork, source);
    let single = SingleThreaded::check().map_err(local)?;
    let owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        user_namespace: needs_user_namespace(),
        host_pid: std::process::id(),
    };
    let pair = |kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(io::Error::from);
    let (host_requests, node_requests) = pair(SocketType::SEQPACKET).map_err(local)?;
    let (host_events, node_events) = pair(SocketType::STREAM).map_err(local)?;
    let (report_read, report_write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| local(error.into()))?;
    // What is buffered would be written by both processes.
    io::stdout().flush().map_err(local)?;
    let signals = BlockedSignals::block(&process::HANDLED_SIGNALS).map_err(local)?;

    match single.fork().map_err(local)? {
        Fork::Parent(launcher) => {
            drop((node_requests, node_events, report_write));
            error::read_report(report_read, launcher)?;
            Ok(Role::Host(HostProcess::new(launcher, signals, host_requests, host_events)))
        }
        Fork::Child => {
            // Also unblocks the signals: nobody reads them here.
            drop(signals);
            drop((host_requests, host_events, report_read));
            match become_node(single, owner) {
                Ok(()) => {}
                Err((step, error)) => {
                    error::write_report(&report_write, step, &error);
                    exit_now(1);
                }
            }
            drop(report_write);
            Ok(Role::Node(NodeProcess {
                host: Arc::new(HostSockets::new(node_requests).map_err(local)?),
                shutdown: ShutdownSignals::new(UnixStream::from(node_events)),
                owner,
            }))
        }
    }
}

/// Namespaces can be made directly only with these capabilities, which root in a container may lack.
fn needs_user_namespace() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::SETPCAP;
    !rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Turns the forked child into the launcher, which never returns, and its child into the node process, which does.
fn become_node(single: SingleThreaded, owner: Owner) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |error: io::Error| (step, error);
    // A session of its own: the terminal's Ctrl-C reaches the host process only, which passes it on in order.
    rustix::process::setsid().map_err(|error| (Step::Fork, error.into()))?;
    die_with_parent(Some(owner.host_pid)).map_err(at(Step::Fork))?;
    if owner.user_namespace {
        namespace::unshare(UnshareFlags::NEWUSER).map_err(at(Step::UserNamespace))?;
        map_identity(owner).map_err(at(Step::IdMap))?;
    }
    namespace::unshare(UnshareFlags::NEWNET).map_err(at(Step::NetworkNamespace))?;
    namespace::unshare(UnshareFlags::NEWNS).map_err(at(Step::MountNamespace))?;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|error| (Step::MountNamespace, error.into()))?;
    namespace::unshare(UnshareFlags::NEWPID).map_err(at(Step::ProcessNamespace))?;
    match single.fork().map_err(at(Step::ProcessNamespace))? {
        Fork::Parent(node) => wait_as_launcher(node),
        Fork::Child => {
            // The launcher is outside of this process namespace, so its id can't be checked; if it's gone already the
            // host process closes the event socket, which ends the node process as well.
            die_with_parent(None).map_err(at(Step::ProcessNamespace))?;
            mount_own_proc();
            keep_memory_private().map_err(at(Step::ProcessNamespace))
        }
    }
}

fn die_with_parent(expected: Option<u32>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = rustix::process::getppid().map(Pid::as_raw_nonzero);
    match (expected, parent) {
        (Some(expected), Some(parent)) if u32::try_from(parent.get()) == Ok(expected) => Ok(()),
        (Some(_), _) => exit_now(1),
        (None, _) => Ok(()),
    }
}

/// The user keeps its own ids inside: files and programs see who they always saw.
fn map_identity(owner: Owner) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{0} {0} 1", owner.uid))?;
    fs::write("/proc/self/gid_map", format!("{0} {0} 1", owner.gid))
}

/// Its memory holds every private key: no core dump, and no other process of the user may look at it, nor at what it
/// forks before that executes something else.
fn keep_memory_private() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// A view of this process namespace only. Where a container masks parts of its own `/proc` the kernel refuses; then the
/// host's view stays, and [`crate::procfs`] translates process ids.
fn mount_own_proc() {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let _host_view_stays = rustix::mount::mount("proc", "/proc", "proc", flags, None::<&std::ffi::CStr>);
}

fn wait_as_launcher(node: Pid) -> ! {
    // Everything that's open belongs to the two others; the end of a stream must be seen when they close it.
    close_all_but_stdio();
    loop {
        match rustix::process::waitpid(Some(node), rustix::process::WaitOptions::empty()) {
            Ok(Some((_, status))) => exit_now(i32::from(shell_code(status))),
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            Err(_) => exit_now(1),
        }
    }
}

fn close_all_but_stdio() {
    // SAFETY: this process never returns to code that owns a descriptor: it waits and then ends by `_exit`.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}
