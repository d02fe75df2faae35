//! Threads for TLS handshakes. One handshake keeps a processor busy for about half a millisecond, a hundred times as long
//! as it takes to pass a message on: done by the threads that carry traffic, a storm of them would hold up everybody. On
//! threads of their own, behind those in priority, they get what processor time is left, and the kernel interrupts them
//! for traffic.
//!
//! Each has a runtime of its own. Those that share one wake another with each task that wakes them, in case that there is
//! more; a handshake wakes its thread three times, and mostly there isn't.

use std::{io, sync::Arc, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How far behind traffic (nice value): of a processor that both want, handshakes still get a quarter, so that new
/// tunnels come into being under load too.
const NICE: i32 = 5;

/// The threads; they end when this is dropped, and what is left on them with them.
pub struct Threads {
    handles: Arc<[Handle]>,
    _end: DropGuard,
}

fn step_back() {
    // On Linux the priority is the thread's alone. Without it handshakes are only fair, not polite.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "the threads for handshakes keep the usual priority");
    }
}

// === impl Threads ===

impl Threads {
    /// As many.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let start = |number| {
            // Sockets stay with the runtime that they were made in.
            let runtime = Builder::new_current_thread().enable_time().build()?;
            let (handle, end) = (runtime.handle().clone(), end.clone());
            thread::Builder::new().name(format!("handshakes-{number}")).spawn(move || {
                step_back();
                runtime.block_on(end.cancelled_owned());
            })?;
            Ok(handle)
        };
        let handles = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Self { handles, _end: guard })
    }

    /// Where to spawn.
    pub fn handles(&self) -> Arc<[Handle]> {
        Arc::clone(&self.handles)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::{process::getpriority_process, thread::gettid};
    use tokio::{runtime::Builder, sync::oneshot, time::timeout};

    use super::*;

    #[test]
    fn each_thread_is_behind_traffic_and_ends_with_what_is_left_on_it() {
        let threads = Threads::start(2).expect("threads");
        let handles = threads.handles();
        assert_eq!(handles.len(), 2);
        let outside = Builder::new_current_thread().enable_time().build().expect("a runtime");
        outside.block_on(async {
            let usual = getpriority_process(Some(gettid())).expect("a priority");
            let mut left = Vec::new();
            for (number, handle) in handles.iter().enumerate() {
                let place = handle.spawn(async {
                    let priority = getpriority_process(Some(gettid())).expect("a priority");
                    (thread::current().name().map(str::to_owned), priority)
                });
                let (name, priority) = place.await.expect("done");
                assert_eq!(name, Some(format!("handshakes-{number}")));
                // Who is further behind already stays there, unless it may come forward.
                assert!(priority == NICE || usual > NICE, "{priority}");
                let (sender, receiver) = oneshot::channel::<()>();
                handle.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(sender);
                });
                left.push(receiver);
            }
            drop(threads);
            for receiver in left {
                let ended = timeout(Duration::from_secs(10), receiver).await.expect("the thread ends");
                assert!(ended.is_err(), "its task is dropped");
            }
        });
    }
}
