//! The host process: makes sockets where the user is, passes signals on, and ends with the node's exit code.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::sockets::{HostRequest, answer};
use crate::limits::{HOST_MESSAGE_BYTES, REMOVE_ON_EXIT_PATHS, SHUTDOWN_DEADLINE};
use crate::packet;
use crate::signals::{BlockedSignals, shell_code};

/// What the host process reads instead of dying from.
pub(super) const HANDLED_SIGNALS: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGCHLD];

/// The process that was started, after the split.
#[derive(Debug)]
pub struct HostProcess {
    launcher: Pid,
    signals: BlockedSignals,
    /// `None` once the node process closed it.
    requests: Option<OwnedFd>,
    events: OwnedFd,
    remove_on_exit: Vec<PathBuf>,
    /// When the node process is killed if it's still there.
    deadline: Option<Instant>,
}

// === impl HostProcess ===

impl HostProcess {
    pub(super) fn new(launcher: Pid, signals: BlockedSignals, requests: OwnedFd, events: OwnedFd) -> Self {
        Self { launcher, signals, requests: Some(requests), events, remove_on_exit: Vec::new(), deadline: None }
    }

    /// Serves the node process until it ends; gives its exit code. The first signal asks it to stop, a second one (or
    /// [`SHUTDOWN_DEADLINE`]) ends it at once.
    pub fn run(mut self) -> ExitCode {
        let code = loop {
            if let Some(code) = self.launcher_ended() {
                break code;
            }
            if self.wait_for_work().is_err() {
                self.kill();
            }
            self.serve_request();
            self.handle_signals();
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.kill();
            }
        };
        for path in &self.remove_on_exit {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
        ExitCode::from(code)
    }

    fn launcher_ended(&self) -> Option<u8> {
        match waitpid(Some(self.launcher), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(shell_code(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => None,
            Err(_) => Some(1),
        }
    }

    fn wait_for_work(&self) -> io::Result<()> {
        let mut watched = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(requests) = &self.requests {
            watched.push(PollFd::new(requests, PollFlags::IN));
        }
        let timeout = self.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the loop doesn't spin through the last millisecond.
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn serve_request(&mut self) {
        let Some(requests) = &self.requests else { return };
        let mut ready = [PollFd::new(requests, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut ready, Some(&now)), Ok(count) if count > 0) {
            return;
        }
        let mut buffer = [0; HOST_MESSAGE_BYTES];
        match packet::receive(requests, &mut buffer) {
            Ok((0, _)) | Err(_) => self.requests = None,
            Ok((length, _)) => match HostRequest::decode(&buffer[..length]) {
                Some(HostRequest::Socket { number, domain, ty, protocol }) => {
                    if answer(requests.as_fd(), number, domain, ty, protocol).is_err() {
                        self.requests = None;
                    }
                }
                Some(HostRequest::RemoveOnExit(path)) => {
                    if self.remove_on_exit.len() < REMOVE_ON_EXIT_PATHS {
                        self.remove_on_exit.push(PathBuf::from(OsString::from_vec(path.to_vec())));
                    }
                }
                // A node process that doesn't speak this protocol isn't ours to serve.
                None => self.requests = None,
            },
        }
    }

    fn handle_signals(&mut self) {
        while let Some(arrived) = self.signals.next() {
            match arrived.number {
                libc::SIGCHLD => {}
                _ if self.deadline.is_some() => self.kill(),
                number => {
                    self.deadline = Some(Instant::now() + SHUTDOWN_DEADLINE);
                    let byte = [u8::try_from(number).unwrap_or(0)];
                    // If it's gone the loop sees that next.
                    let _ = rustix::io::write(&self.events, &byte);
                }
            }
        }
    }

    /// Kills the launcher; the node process and its whole process namespace die with it.
    fn kill(&self) {
        let _ = kill_process(self.launcher, Signal::KILL);
    }
}
