//! The node process is PID 1 of its process namespace: it collects every process that ends there, its own and orphans.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::process::Exit;

/// Collects ended processes and tells those who wait. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reaper {
    waiting: Arc<Mutex<HashMap<i32, oneshot::Sender<Exit>>>>,
}

// === impl Reaper ===

impl Reaper {
    /// Starts collecting, on the current tokio runtime. Once per process: it takes every child's status.
    ///
    /// # Errors
    /// When the signal can't be watched.
    pub fn start() -> io::Result<Self> {
        let ended = signal(SignalKind::child())?;
        let reaper = Self { waiting: Arc::default() };
        tokio::spawn(reaper.clone().collect(ended));
        Ok(reaper)
    }

    /// Runs `spawn`, which starts one child, and gives what will tell its end. The lock keeps a child that ends at once
    /// from being collected before anyone waits for it (and the standard library's own wait for a failed exec from
    /// losing its child to us).
    pub(crate) fn spawn(&self, spawn: impl FnOnce() -> io::Result<i32>) -> io::Result<(i32, oneshot::Receiver<Exit>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = spawn()?;
        let (tell, told) = oneshot::channel();
        waiting.insert(pid, tell);
        Ok((pid, told))
    }

    async fn collect(self, mut ended: Signal) {
        loop {
            self.collect_now();
            if ended.recv().await.is_none() {
                return;
            }
        }
    }

    fn collect_now(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(tell) = waiting.remove(&pid.as_raw_nonzero().get()) {
                        // Nobody waits any more: fine.
                        let _ = tell.send(exit_of(status));
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(1),
    }
}
