//! `ambit run`: a program of this terminal in a pod of a running mesh.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::confine::confine;
use crate::control::{ClientError, ControlClient, Request, Response, RunRequest, SessionInfo};
use crate::namespace::{self, Kind};
use crate::pod::PodNamespaces;
use crate::signals::{BlockedSignals, Fork, Mask, SingleThreaded, exit_now, shell_code};

/// What the shell says when a program isn't found, and when it can't be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// How long a command waits for the mesh to take its pod back.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What a waiting command passes on to its program.
const PASSED_ON: [i32; 8] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGCHLD,
];

/// A pod that lasts as long as this is held.
#[derive(Debug)]
pub struct Session {
    /// What the mesh said about it.
    pub info: SessionInfo,
    namespaces: Vec<(Kind, OwnedFd)>,
    /// Its end is the end of the pod.
    connection: ControlClient,
}

/// What to run in it.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts; `/` where that doesn't exist in the pod.
    pub working_dir: PathBuf,
}

/// A program couldn't be run in the pod.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing to run.
    #[error("no command given; put it after `--`")]
    Empty,
    /// A namespace of the mesh.
    #[error("can't enter the pod's {kind} namespace: {source}; is the mesh this user's?")]
    Enter {
        /// Which one.
        kind: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Fork, signals or waiting.
    #[error("can't run a program: {0}")]
    Start(#[from] io::Error),
}

/// Asks the mesh for a pod.
///
/// # Errors
/// When the mesh refuses or is gone.
pub fn attach(connection: ControlClient, request: RunRequest) -> Result<Session, ClientError> {
    let (response, fds) = connection.call(&Request::Run(request))?;
    let Response::Session(info) = response else { return Err(ClientError::Unexpected) };
    let kinds = session_kinds(info.user_namespace);
    if fds.len() != kinds.len() {
        return Err(ClientError::Unexpected);
    }
    Ok(Session { info, namespaces: kinds.into_iter().zip(fds).collect(), connection })
}

// === impl Session ===

impl Session {
    /// Gives the pod back and waits (up to [`END_TIMEOUT`]) until the mesh has taken it, so that the next command finds
    /// the declared pod free again.
    pub fn end(self) {
        self.connection.finish(END_TIMEOUT);
    }
}

/// Runs a program in the session's pod and gives its exit code (128 and the signal's number if it was killed). It keeps
/// the terminal, the process group and the three standard streams, and dies with this process.
///
/// Call it from a process with one thread; the process itself is in the pod's namespaces afterwards and should end.
///
/// # Errors
/// When a namespace can't be entered or the program can't be started. A program that isn't found is exit code 127, as in
/// a shell.
pub fn exec_in(session: &Session, spec: &RunSpec) -> Result<u8, RunError> {
    if spec.argv.is_empty() {
        return Err(RunError::Empty);
    }
    // Before the view of `/proc` changes.
    let single = SingleThreaded::check()?;
    let uid = rustix::process::geteuid().as_raw();
    // The user namespace first: it gives the right to enter the others. The mount namespace last: it changes the view.
    for (kind, namespace) in &session.namespaces {
        namespace::enter(namespace.as_fd(), *kind)
            .map_err(|source| RunError::Enter { kind: kind_name(*kind), source })?;
    }
    let signals = BlockedSignals::block(&PASSED_ON)?;
    // Closes when this process ends, which the child, in another process namespace, can't see by its parent's id.
    let (alive, here) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    match single.fork()? {
        Fork::Child => {
            drop(here);
            become_program(spec, uid, &alive, signals.mask_before())
        }
        Fork::Parent(program) => {
            drop(alive);
            wait_for(program, &signals, &session.connection)
        }
    }
}

fn become_program(spec: &RunSpec, uid: u32, alive: &OwnedFd, mask: Mask) -> ! {
    mask.restore();
    let ready = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // From here on the parent's end is this process's; before, it shows on the pipe.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(alive, PollFlags::IN)], Some(&now)) != Ok(0) {
        exit_now(NOT_EXECUTABLE);
    }
    let ready = ready.and_then(|()| confine(uid));
    if let Err(error) = ready {
        eprintln!("ambit: can't give up what the program must not have: {error}");
        exit_now(NOT_EXECUTABLE);
    }
    enter_folder(spec);
    let error = Command::new(&spec.argv[0])
        .args(&spec.argv[1..])
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .exec();
    eprintln!("ambit: can't run `{}`: {error}", spec.argv[0].to_string_lossy());
    exit_now(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE });
}

fn enter_folder(spec: &RunSpec) {
    let entered = CString::new(spec.working_dir.as_os_str().as_bytes())
        .is_ok_and(|folder| rustix::process::chdir(folder.as_c_str()).is_ok());
    if !entered {
        eprintln!("ambit: `{}` doesn't exist in the pod; starting in `/`", spec.working_dir.display());
        let _ = rustix::process::chdir(c"/");
    }
}

/// Waits for the program and passes signals on: those that a terminal sent reached it already.
fn wait_for(program: Pid, signals: &BlockedSignals, connection: &ControlClient) -> Result<u8, RunError> {
    let mut mesh_ended = false;
    loop {
        match waitpid(Some(program), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => return Ok(shell_code(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut watched = vec![PollFd::new(signals, PollFlags::IN)];
        if !mesh_ended {
            watched.push(PollFd::new(connection, PollFlags::IN));
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if watched.get(1).is_some_and(|mesh| !mesh.revents().is_empty()) {
            // The mesh says nothing more but its end, which ends the program too; its status comes by waiting.
            mesh_ended = true;
            let _ = kill_process(program, Signal::TERM);
        }
        while let Some(arrived) = signals.next() {
            let Some(signal) = Signal::from_named_raw(arrived.number) else { continue };
            if signal != Signal::CHILD && !arrived.from_kernel {
                let _ = kill_process(program, signal);
            }
        }
    }
}

/// The order in which namespaces are sent, which is the order in which they're entered.
fn session_kinds(user_namespace: bool) -> Vec<Kind> {
    let mut kinds = vec![Kind::ProcessIds, Kind::Network, Kind::HostName, Kind::Mount];
    if user_namespace {
        kinds.insert(0, Kind::User);
    }
    kinds
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::User => "user",
        Kind::ProcessIds => "process",
        Kind::Network => "network",
        Kind::Mount => "mount",
        Kind::HostName => "host name",
    }
}

/// The mesh's side of [`attach`]: what is sent for a pod.
pub(crate) fn session_of(namespace: &str, pod: &PodNamespaces) -> io::Result<(SessionInfo, Vec<OwnedFd>)> {
    let user_namespace = pod.node().has_user_namespace();
    let fds = session_kinds(user_namespace)
        .into_iter()
        .map(|kind| match kind {
            Kind::User | Kind::ProcessIds => namespace::open(kind),
            Kind::Network => pod.network_namespace().try_clone_to_owned(),
            Kind::HostName => pod.host_name().try_clone_to_owned(),
            Kind::Mount => pod.mount().try_clone_to_owned(),
        })
        .collect::<io::Result<_>>()?;
    let info =
        SessionInfo { pod: pod.name().to_owned(), namespace: namespace.to_owned(), ip: pod.ip(), user_namespace };
    Ok((info, fds))
}
