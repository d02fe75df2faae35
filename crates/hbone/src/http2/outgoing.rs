//! What goes out next.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    frame::{self, Code, kind},
    state::{Role, State, Stream},
};
use crate::limits::{BATCH_BYTES, DATA_FRAME_BYTES};

/// What goes out next: `control` first, then `pieces`.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) control: Vec<u8>,
    pub(super) pieces: Vec<Piece>,
    pub(super) bytes: usize,
}

pub(super) enum Piece {
    Head([u8; frame::HEAD_BYTES]),
    Data(Bytes),
}

// === impl State ===

impl State {
    /// Moves what is to be sent into `batch`, up to a limit; the streams take turns.
    pub(super) fn collect(&mut self, batch: &mut Batch) {
        batch.control.append(&mut self.control);
        while batch.bytes < BATCH_BYTES {
            let Some(id) = self.sendable.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.listed = false;
            if stream.broken.is_some() {
                continue;
            }
            let window = stream.send_window.min(self.send_window).max(0);
            let room = usize::try_from(window).unwrap_or(usize::MAX).min(self.peer.max_frame as usize);
            let length = stream.queued.min(room).min(DATA_FRAME_BYTES);
            if length == 0 && stream.queued > 0 {
                if stream.send_window > 0 {
                    // The connection's window is spent, for the others too.
                    stream.listed = true;
                    self.sendable.push_front(id);
                    return;
                }
                continue;
            }
            let last = length == stream.queued && stream.finishing;
            let flags = if last { frame::END_STREAM } else { 0 };
            batch.pieces.push(Piece::Head(frame::head(length, kind::DATA, flags, id)));
            stream.dequeue(length, &mut batch.pieces);
            batch.bytes += frame::HEAD_BYTES + length;
            self.queued -= length;
            self.send_window -= length as i64;
            if last {
                stream.send_closed = true;
                stream.finishing = false;
            }
            if stream.queued <= self.config.send_buffer / 2 {
                self.wakes.extend(stream.writer.take());
            }
            if last {
                self.finished_sending(id);
            } else {
                self.list(id);
            }
        }
    }

    /// END_STREAM is out.
    fn finished_sending(&mut self, id: u32) {
        if let Some(stream) = self.streams.get(&id)
            && !stream.held
            && !stream.recv_closed
        {
            // Nobody is left to read what the peer may still send.
            let code = if self.role == Role::Server { Code::NO_ERROR } else { Code::CANCEL };
            return self.reset(id, code);
        }
        self.reap(id);
    }
}

// === impl Stream ===

impl Stream {
    /// Moves `length` bytes of the queue into `pieces`.
    fn dequeue(&mut self, mut length: usize, pieces: &mut Vec<Piece>) {
        self.queued -= length;
        self.send_window -= length as i64;
        while length > 0
            && let Some(mut chunk) = self.queue.pop_front()
        {
            if chunk.len() > length {
                pieces.push(Piece::Data(chunk.split_to(length)));
                self.queue.push_front(chunk);
                return;
            }
            length -= chunk.len();
            pieces.push(Piece::Data(chunk));
        }
        if self.queue.is_empty() {
            // An idle stream holds no room for chunks.
            self.queue = VecDeque::new();
        }
    }
}

// === impl Piece ===

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Head(head) => head,
            Self::Data(bytes) => bytes,
        }
    }
}
