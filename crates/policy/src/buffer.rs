//! Bytes that are on the stack unless there are many.

use crate::limits::INLINE_PATH_BYTES;

/// A growing text of bytes.
pub(crate) struct Buffer {
    inline: [u8; INLINE_PATH_BYTES],
    /// Bytes used of `inline`.
    length: usize,
    /// All of them, once they don't fit.
    heap: Option<Vec<u8>>,
}

// === impl Buffer ===

impl Buffer {
    pub(crate) fn new() -> Self {
        Self { inline: [0; INLINE_PATH_BYTES], length: 0, heap: None }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.heap.as_deref().unwrap_or(&self.inline[..self.length])
    }

    pub(crate) fn push(&mut self, byte: u8) {
        match (&mut self.heap, self.inline.get_mut(self.length)) {
            (Some(heap), _) => heap.push(byte),
            (None, Some(free)) => {
                *free = byte;
                self.length += 1;
            }
            (None, None) => {
                let mut heap = Vec::with_capacity(INLINE_PATH_BYTES * 2);
                heap.extend_from_slice(&self.inline);
                heap.push(byte);
                self.heap = Some(heap);
            }
        }
    }

    /// Changes the bytes in place and cuts them to the length that comes out.
    pub(crate) fn shorten(&mut self, change: impl FnOnce(&mut [u8]) -> usize) {
        match &mut self.heap {
            Some(heap) => {
                let length = change(heap);
                heap.truncate(length);
            }
            None => self.length = change(&mut self.inline[..self.length]).min(self.length),
        }
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::new();
        match buffer.inline.get_mut(..bytes.len()) {
            Some(free) => {
                free.copy_from_slice(bytes);
                buffer.length = bytes.len();
            }
            None => buffer.heap = Some(bytes.to_vec()),
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_the_same_on_both_sides_of_the_bound() {
        for length in [0, 1, INLINE_PATH_BYTES - 1, INLINE_PATH_BYTES, INLINE_PATH_BYTES + 1, 3 * INLINE_PATH_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut pushed = Buffer::new();
            bytes.iter().for_each(|&byte| pushed.push(byte));
            let mut copied = Buffer::from(&*bytes);
            assert_eq!((pushed.as_slice(), copied.as_slice()), (&*bytes, &*bytes));
            copied.shorten(|bytes| bytes.len() / 2);
            assert_eq!(copied.as_slice(), &bytes[..length / 2]);
        }
    }
}
