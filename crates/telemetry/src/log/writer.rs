//! Lines on their way out. Whoever logs never waits: a line that finds no place is counted and dropped.

use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use crate::limits::{MAX_QUEUED_LINE_BYTES, MAX_QUEUED_LINES, MAX_WRITE_BYTES};

/// Takes lines for a thread of its own to write. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogWriter {
    /// INVARIANT: bounded by `queued_lines`. A channel with a bound of its own would have room for all of it from the start.
    lines: Sender<Vec<u8>>,
    shared: Arc<Shared>,
}

/// One line in the making: it is sent when dropped.
#[derive(Debug)]
pub struct Draft<'w> {
    writer: &'w LogWriter,
    text: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    queued_lines: AtomicUsize,
    max_lines: usize,
    queued_bytes: AtomicUsize,
    accepted: AtomicU64,
    /// Lines that the thread is done with, well or not.
    done: Mutex<u64>,
    moved: Condvar,
    dropped: Arc<AtomicU64>,
}

// === impl LogWriter ===

impl LogWriter {
    /// Starts a thread that writes lines to `output`. What is dropped is counted in `dropped`, and said in the log once
    /// there is room again.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(output: impl Write + Send + 'static, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        Self::with_queue(output, dropped, MAX_QUEUED_LINES)
    }

    fn with_queue(output: impl Write + Send + 'static, dropped: Arc<AtomicU64>, queue: usize) -> io::Result<Self> {
        let (lines, queued) = channel();
        let shared = Arc::new(Shared {
            queued_lines: AtomicUsize::new(0),
            max_lines: queue,
            queued_bytes: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            done: Mutex::new(0),
            moved: Condvar::new(),
            dropped,
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("log".to_owned()).spawn(move || run(&queued, &theirs, output))?;
        Ok(Self { lines, shared })
    }

    /// Hands over a line, which ends with a newline. False if it was dropped.
    pub fn line(&self, line: Vec<u8>) -> bool {
        let length = line.len();
        let has_place = self.shared.queued_lines.fetch_add(1, Ordering::Relaxed) < self.shared.max_lines;
        let queued = self.shared.queued_bytes.fetch_add(length, Ordering::Relaxed);
        let has_place = has_place && queued.saturating_add(length) <= MAX_QUEUED_LINE_BYTES;
        // Counted before it is sent, so that a flush that follows waits for it.
        self.shared.accepted.fetch_add(1, Ordering::AcqRel);
        if has_place && self.lines.send(line).is_ok() {
            return true;
        }
        self.shared.queued_lines.fetch_sub(1, Ordering::Relaxed);
        self.shared.queued_bytes.fetch_sub(length, Ordering::Relaxed);
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        self.shared.finished(1);
        false
    }

    /// Waits until what was handed over so far is written, but no longer than this. True if it is.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = self.shared.accepted.load(Ordering::Acquire);
        let done = self.shared.done.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.moved.wait_timeout_while(done, patience, |done| *done < until);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl<'w> MakeWriter<'w> for LogWriter {
    type Writer = Draft<'w>;

    fn make_writer(&'w self) -> Draft<'w> {
        Draft { writer: self, text: Vec::new() }
    }
}

// === impl Draft ===

impl Write for Draft<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.writer.line(std::mem::take(&mut self.text));
        }
    }
}

// === impl Shared ===

impl Shared {
    fn finished(&self, lines: u64) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) += lines;
        self.moved.notify_all();
    }
}

/// Writes until every sender is gone.
fn run(queued: &Receiver<Vec<u8>>, shared: &Shared, mut output: impl Write) {
    let mut batch = Vec::with_capacity(MAX_WRITE_BYTES);
    let mut said = 0;
    while let Ok(line) = queued.recv() {
        batch.clear();
        batch.extend_from_slice(&line);
        let mut lines = 1;
        let mut is_behind = true;
        while batch.len() < MAX_WRITE_BYTES {
            match queued.try_recv() {
                Ok(line) => {
                    batch.extend_from_slice(&line);
                    lines += 1;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    is_behind = false;
                    break;
                }
            }
        }
        shared.queued_lines.fetch_sub(lines, Ordering::Relaxed);
        shared.queued_bytes.fetch_sub(batch.len(), Ordering::Relaxed);
        if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
            shared.dropped.fetch_add(lines as u64, Ordering::Relaxed);
        } else if !is_behind {
            said = say_dropped(shared, said, &mut output);
        }
        shared.finished(lines as u64);
    }
}

/// Says how many lines were dropped since the last time, if any.
fn say_dropped(shared: &Shared, said: u64, output: &mut impl Write) -> u64 {
    let dropped = shared.dropped.load(Ordering::Relaxed);
    if dropped > said {
        let count = dropped - said;
        let time = super::Timestamp(std::time::SystemTime::now());
        let text = format!(
            "{time}\twarn\tlog\tlog lines were dropped: they come faster than they can be written\tcount={count}\n"
        );
        // If this can't be written either, the metric still tells.
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that waits for a token before each write.
    struct Gate {
        tokens: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            // Without its other end it is open.
            let _ = self.tokens.recv();
            self.written.lock().expect("not poisoned").extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A writer, what opens its output when dropped, what was written, and how many lines were dropped.
    type Gated = (LogWriter, Sender<()>, Arc<Mutex<Vec<u8>>>, Arc<AtomicU64>);

    fn gated(queue: usize) -> Gated {
        let (open, tokens) = channel();
        let (written, dropped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let gate = Gate { tokens, written: Arc::clone(&written) };
        (LogWriter::with_queue(gate, Arc::clone(&dropped), queue).expect("a thread"), open, written, dropped)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().expect("not poisoned").clone()).expect("text")
    }

    #[test]
    fn a_stuck_output_never_blocks_and_what_is_lost_is_counted_and_said_once() {
        let (writer, open, written, dropped) = gated(4);
        let accepted = (0..50).filter(|i| writer.line(format!("line {i}\n").into_bytes())).count();
        // Four in the queue, and perhaps some that the thread has taken already.
        assert!((4..=8).contains(&accepted), "{accepted}");
        assert_eq!(dropped.load(Ordering::Relaxed), 50 - accepted as u64);
        assert!(!writer.flush(Duration::from_millis(20)), "it is stuck");
        drop(open);
        assert!(writer.flush(Duration::from_secs(5)));
        let text = text(&written);
        assert_eq!(text.lines().filter(|line| line.starts_with("line ")).count(), accepted);
        let said: Vec<_> = text.lines().filter(|line| line.contains("log lines were dropped")).collect();
        assert_eq!(said.len(), 1, "{text}");
        assert!(said[0].ends_with(&format!("count={}", 50 - accepted)), "{}", said[0]);
    }

    #[test]
    fn a_flush_waits_for_every_line_of_every_thread() {
        let (writer, open, written, dropped) = gated(10_000);
        drop(open);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let writer = writer.clone();
                thread::spawn(move || {
                    (0..1000).for_each(|i| assert!(writer.line(format!("{thread} {i}\n").into_bytes())));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(writer.flush(Duration::from_secs(10)));
        let text = text(&written);
        assert_eq!((text.lines().count(), dropped.load(Ordering::Relaxed)), (4000, 0));
        for thread in 0..4 {
            let prefix = format!("{thread} ");
            let of_thread: Vec<usize> =
                text.lines().filter_map(|line| line.strip_prefix(&prefix)?.parse().ok()).collect();
            assert!(of_thread.iter().copied().eq(0..1000), "the lines of a thread keep their order");
        }
    }

    #[test]
    fn bytes_in_the_queue_are_bounded_too() {
        let (writer, open, _written, dropped) = gated(10_000);
        let megabyte = vec![b'x'; 1 << 20];
        let accepted = (0..64).filter(|_| writer.line(megabyte.clone())).count();
        assert!(accepted <= 18, "{accepted}");
        assert_eq!(dropped.load(Ordering::Relaxed), 64 - accepted as u64);
        drop(open);
        assert!(writer.flush(Duration::from_secs(5)));
    }

    #[test]
    fn an_output_that_fails_loses_lines_and_recovers() {
        struct Full(u32, Arc<Mutex<Vec<u8>>>);
        impl Write for Full {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                if self.0 > 0 {
                    self.0 -= 1;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                self.1.lock().expect("not poisoned").extend_from_slice(text);
                Ok(text.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (written, dropped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let writer = LogWriter::start(Full(1, Arc::clone(&written)), Arc::clone(&dropped)).expect("a thread");
        writer.line(b"lost\n".to_vec());
        assert!(writer.flush(Duration::from_secs(5)));
        writer.line(b"kept\n".to_vec());
        assert!(writer.flush(Duration::from_secs(5)));
        let text = text(&written);
        assert!(text.starts_with("kept\n") && text.contains("count=1"), "{text}");
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }
}
