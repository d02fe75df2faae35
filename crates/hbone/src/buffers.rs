//! Large buffers that a connection needs only while bytes move. Each worker thread keeps a few, so that an idle
//! connection holds none and a busy one allocates none.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

use crate::limits::{KEPT_BUFFERS, OUT_BYTES, READ_BYTES, SMALL_PIECE_BYTES};

thread_local! {
    static IN: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static OUT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for a read.
pub(crate) fn take_in() -> BytesMut {
    IN.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(READ_BYTES))
}

/// Gives a buffer back, unless somebody still holds a part of it.
pub(crate) fn give_in(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.capacity() >= READ_BYTES || buffer.try_reclaim(READ_BYTES) {
        IN.with_borrow_mut(|kept| {
            if kept.len() < KEPT_BUFFERS {
                kept.push(buffer);
            }
        });
    }
}

/// Gives the buffer back that `bytes` are the last to lie in, if it is a large one.
pub(crate) fn recycle(bytes: Bytes) {
    if bytes.len() > SMALL_PIECE_BYTES
        && let Ok(buffer) = bytes.try_into_mut()
    {
        give_in(buffer);
    }
}

/// An empty buffer with room for a batch of records.
pub(crate) fn take_out() -> Vec<u8> {
    OUT.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives a buffer back, if it is worth keeping.
pub(crate) fn give_out(mut buffer: Vec<u8>) {
    buffer.clear();
    if (4096..=2 * OUT_BYTES).contains(&buffer.capacity()) {
        OUT.with_borrow_mut(|kept| {
            if kept.len() < KEPT_BUFFERS {
                kept.push(buffer);
            }
        });
    }
}
