//! Programs in pods.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

use crate::confine::confine;
use crate::limits::OUTPUT_LINE_BYTES;
use crate::namespace::{self, Kind};
use crate::pod::PodNamespaces;
use crate::reaper::Reaper;

/// A program name that means this program itself.
const OWN_NAME: &str = "ambit";
/// What a pod's programs inherit of the environment that the mesh was started in.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TERM", "USER"];

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// Program and arguments. A program without `/` is looked up in `PATH`; exactly `ambit` is this program.
    pub argv: Vec<String>,
    /// Added to what is inherited (`PATH`, `HOME`, `LANG`, `TERM`, `USER`) and `HOSTNAME`; the last of a name counts.
    pub env: Vec<(String, String)>,
    /// Where it starts; `/` if none.
    pub working_dir: Option<PathBuf>,
}

/// Which of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that a program wrote, without its end; longer than [`OUTPUT_LINE_BYTES`] comes in pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputLine {
    /// Where it was written.
    pub stream: Stream,
    /// The line, what isn't UTF-8 replaced.
    pub text: String,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with that code.
    Code(i32),
    /// By that signal.
    Signal(i32),
}

/// A running program, in a session of its own.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    ended: oneshot::Receiver<Exit>,
    exit: Option<Exit>,
}

/// A program couldn't be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No program given.
    #[error("the command is empty; give a program to run")]
    Empty,
    /// A text holds a NUL byte.
    #[error("the command, its environment or its folder holds a NUL byte")]
    Nul,
    /// The kernel's answer.
    #[error("can't run `{program}`: {source}")]
    Start {
        /// Which program.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Starts a program in a pod. It has the user's id and none of the node process's capabilities. Its output goes to
/// `output` line by line (nowhere if `None`); reading never stops, so a slow receiver slows the program down and a closed
/// one doesn't.
///
/// # Errors
/// When the program isn't found or the kernel refuses.
pub fn spawn(
    reaper: &Reaper,
    pod: &PodNamespaces,
    spec: &ProcessSpec,
    output: Option<mpsc::Sender<OutputLine>>,
) -> Result<Process, SpawnError> {
    let program = spec.argv.first().filter(|program| !program.is_empty()).ok_or(SpawnError::Empty)?;
    let failed = |source| SpawnError::Start { program: program.clone(), source };
    let mut command = command(pod, spec, program)?;
    let (stdout, stderr) =
        if output.is_some() { (Stdio::piped(), Stdio::piped()) } else { (Stdio::null(), Stdio::null()) };
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);

    let mut pipes = None;
    let (pid, ended) = reaper
        .spawn(|| {
            let mut child = command.spawn()?;
            pipes = Some((child.stdout.take(), child.stderr.take()));
            // The handle is dropped without waiting: the reaper waits.
            i32::try_from(child.id()).map_err(io::Error::other)
        })
        .map_err(failed)?;
    let pid = Pid::from_raw(pid).ok_or_else(|| failed(io::Error::other("the child has no id")))?;
    if let (Some(output), Some((stdout, stderr))) = (output, pipes) {
        read_lines(stdout.map(OwnedFd::from), Stream::Stdout, output.clone()).map_err(failed)?;
        read_lines(stderr.map(OwnedFd::from), Stream::Stderr, output).map_err(failed)?;
    }
    Ok(Process { pid, ended, exit: None })
}

fn command(pod: &PodNamespaces, spec: &ProcessSpec, program: &str) -> Result<Command, SpawnError> {
    let mut command = if program == OWN_NAME {
        // Whatever became of the file's name since: the child is still this program until it executes.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(OWN_NAME);
        command
    } else {
        Command::new(program)
    };
    command.args(&spec.argv[1..]).env_clear().envs(environment(pod.name(), &spec.env));
    let folder = spec.working_dir.as_deref().unwrap_or_else(|| "/".as_ref());
    let folder = CString::new(folder.as_os_str().as_encoded_bytes()).map_err(|_| SpawnError::Nul)?;
    let namespaces = Namespaces::of(pod);
    let uid = pod.node().uid();
    // SAFETY: the closure runs in the forked child, where other threads' locks may be held for ever: it makes system
    // calls only and doesn't allocate (`Namespaces` holds plain descriptors, the folder is a `CString` made before). The
    // descriptors are open until `spawn` returns, because `pod` is borrowed by the caller for as long.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            namespaces.enter()?;
            rustix::process::chdir(folder.as_c_str())?;
            confine(uid)?;
            close_inherited_on_exec()
        });
    }
    Ok(command)
}

/// What the mesh's caller had open beside the three standard streams isn't for programs in pods.
fn close_inherited_on_exec() -> io::Result<()> {
    // SAFETY: the call only sets a flag on descriptors, which takes effect when this process executes another program.
    match unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn environment(host_name: &str, own: &[(String, String)]) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> =
        INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    environment.insert("HOSTNAME".to_owned(), host_name.to_owned());
    environment.extend(own.iter().cloned());
    environment
}

/// A pod's namespaces as plain numbers, for the time between fork and exec.
struct Namespaces {
    network: i32,
    host_name: i32,
    mount: i32,
}

impl Namespaces {
    fn of(pod: &PodNamespaces) -> Self {
        Self {
            network: pod.network_namespace().as_raw_fd(),
            host_name: pod.host_name().as_raw_fd(),
            mount: pod.mount().as_raw_fd(),
        }
    }

    fn enter(&self) -> io::Result<()> {
        // The mount namespace last: it changes the root and with it the view of everything else.
        for (number, kind) in
            [(self.network, Kind::Network), (self.host_name, Kind::HostName), (self.mount, Kind::Mount)]
        {
            // SAFETY: the descriptor is open: the child got a copy of the parent's table at fork, where the pod that
            // owns it is borrowed until the child has executed.
            namespace::enter(unsafe { BorrowedFd::borrow_raw(number) }, kind)?;
        }
        Ok(())
    }
}

/// Passes lines on until the program and everything that inherited its output has closed it.
fn read_lines(pipe: Option<OwnedFd>, stream: Stream, output: mpsc::Sender<OutputLine>) -> io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    let mut pipe = tokio::net::unix::pipe::Receiver::from_file(File::from(pipe))?;
    tokio::spawn(async move {
        let mut lines = LineBuffer::default();
        let mut chunk = [0; 4_096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
            for text in lines.push(&chunk[..length]) {
                // A receiver that is gone doesn't stop the program: reading goes on.
                let _ = output.send(OutputLine { stream, text }).await;
            }
        }
        if let Some(text) = lines.rest() {
            let _ = output.send(OutputLine { stream, text }).await;
        }
    });
    Ok(())
}

#[derive(Default)]
struct LineBuffer {
    partial: Vec<u8>,
}

impl LineBuffer {
    /// The lines that `bytes` complete.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                lines.push(self.take());
            } else {
                self.partial.push(*byte);
                if self.partial.len() == OUTPUT_LINE_BYTES {
                    lines.push(self.take());
                }
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.partial)).trim_end_matches('\r').to_owned()
    }
}

// === impl Process ===

impl Process {
    /// Its id in the mesh's process namespace.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until the program has ended. Safe to cancel, and to call again.
    pub async fn wait(&mut self) -> Exit {
        match self.exit {
            Some(exit) => exit,
            None => {
                let exit = (&mut self.ended).await.unwrap_or(Exit::Signal(libc::SIGKILL));
                self.exit = Some(exit);
                exit
            }
        }
    }

    /// Sends a signal to the program and what it started (its process group). Nothing once it's known to have ended.
    pub fn signal(&self, signal: Signal) {
        if self.exit.is_none() {
            // Gone in this moment: as good.
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Ends what the program left behind in its process group.
    pub(crate) fn end_group(&self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }
}

// === impl Exit ===

impl Exit {
    /// The code a shell would give: the program's own, or 128 and the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// It ended by itself and well.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_their_end_and_at_the_limit() {
        let mut lines = LineBuffer::default();
        assert!(lines.push(b"on").is_empty());
        assert_eq!(lines.push(b"e\r\ntwo\n\nthr"), ["one", "two", ""]);
        assert_eq!(lines.rest().as_deref(), Some("thr"));
        let long = vec![b'x'; OUTPUT_LINE_BYTES + 3];
        let pieces = lines.push(&long);
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [OUTPUT_LINE_BYTES]);
        assert_eq!(lines.rest().as_deref(), Some("xxx"));
    }

    #[test]
    fn the_container_has_the_last_word_on_its_environment() {
        let own = [
            ("HOSTNAME".to_owned(), "a".to_owned()),
            ("X".to_owned(), "1".to_owned()),
            ("X".to_owned(), "2".to_owned()),
        ];
        let environment = environment("pod", &own);
        assert_eq!(environment["HOSTNAME"], "a");
        assert_eq!(environment["X"], "2");
        assert!(!environment.contains_key("CARGO_PKG_NAME"), "nothing else is inherited");
    }
}
