//! When to end: SIGTERM, SIGINT (a second signal ends at once), `/quitquitquit`, or a part that can't go on
//! (`spec/ztunnel.md` 18).

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Exit codes after a second signal, as a shell shows them.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// What can be heard of the outside. Made at the start, so that no signal is lost.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Which second signal ends the process at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// SIGINT: node agents send SIGTERM as often as they like.
    Interrupt,
    /// Either.
    Any,
}

/// Asks for the end from within. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<Option<String>>);

// === impl Signals ===

impl Signals {
    /// Takes both signals from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the first reason to end. From then on a second signal ends the process at once.
    pub async fn first(mut self, shutdown: &Shutdown, second: Second) -> String {
        let mut asked = shutdown.0.subscribe();
        let reason = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM".to_owned(),
            _ = self.interrupt.recv() => "SIGINT".to_owned(),
            reason = asked.wait_for(Option::is_some) => {
                reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = self.interrupt.recv() => std::process::exit(INTERRUPTED),
                _ = self.terminate.recv(), if second == Second::Any => std::process::exit(TERMINATED),
            }
        });
        reason
    }
}

// === impl Shutdown ===

impl Shutdown {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Asks for the end. The first reason counts.
    pub fn ask(&self, reason: impl Into<String>) {
        self.0.send_if_modified(|now| match now {
            Some(_) => false,
            None => {
                *now = Some(reason.into());
                true
            }
        });
    }
}
