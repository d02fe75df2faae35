//! Threads for TLS handshakes. One handshake keeps a processor busy for about half a millisecond, a hundred times as long
//! as it takes to pass a message on: done by the threads that carry traffic, a storm of them would hold up everybody. On
//! threads of their own, behind those in priority, they get what processor time is left, and the kernel interrupts them
//! for traffic.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::runtime::{Builder, Runtime};

/// How far behind traffic (nice value): of a processor that both want, handshakes still get a quarter, so that new
/// tunnels come into being under load too.
const NICE: i32 = 5;

/// A runtime with as many such threads.
///
/// # Errors
/// When the threads can't be made.
pub fn runtime(threads: usize) -> io::Result<Runtime> {
    let number = AtomicUsize::new(0);
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name_fn(move || format!("handshakes-{}", number.fetch_add(1, Ordering::Relaxed)))
        .on_thread_start(step_back)
        .enable_all()
        .build()
}

fn step_back() {
    // On Linux the priority is the thread's alone. Without it handshakes are only fair, not polite.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "the threads for handshakes keep the usual priority");
    }
}
