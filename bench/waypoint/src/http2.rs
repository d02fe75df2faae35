//! As much of HTTP/2 as a client needs that asks for one path all the time (RFC 9113, 7541).

use crate::scenario::AUTHORITY;

/// One connection.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// The header block of the first request, which puts its lines into the peer's table.
    first: Vec<u8>,
    /// Number of the next stream.
    next: u32,
    /// A frame's header, or all of it, that isn't there yet.
    partial: Vec<u8>,
    /// Bytes of a DATA frame to come, and whose stream it ends.
    data: Option<(usize, Option<u32>)>,
    /// Bytes of DATA since the last WINDOW_UPDATE of the connection.
    received: u32,
}

const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// As large as a window can be: the client is never what holds a response back.
const WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;
/// The connection's window is opened again after so much.
const REPLENISH_BYTES: u32 = 1 << 28;
/// Longest frame other than DATA: the largest that a peer may send unasked.
const MAX_FRAME_BYTES: usize = 16 * 1024;
/// `:status: 200` of the static table.
const STATUS_200: u8 = 0x88;
/// `:method: GET`, `:scheme: http`, then the four lines of the first request, the oldest first.
const LATER: &[u8] = &[0x82, 0x86, 0xc1, 0xc0, 0xbf, 0xbe];

// === impl Http2 ===

impl Http2 {
    pub(crate) fn new(path: &str) -> Self {
        let mut first = vec![0x82, 0x86];
        // Literals that the peer is to remember; names of the static table: `:path`, `:authority`, `user-agent`, `accept`.
        for (name, value) in [(4, path), (1, AUTHORITY), (58, "ambit-bench"), (19, "*/*")] {
            first.push(0x40 | name);
            // INVARIANT: all of them are shorter than 127 bytes, so the length is one byte.
            first.push(value.len() as u8);
            first.extend_from_slice(value.as_bytes());
        }
        Self { first, next: 1, partial: Vec::new(), data: None, received: 0 }
    }

    pub(crate) fn opening() -> Vec<u8> {
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut settings = vec![0, 2, 0, 0, 0, 0, 0, 4];
        settings.extend_from_slice(&WINDOW.to_be_bytes());
        frame(&mut out, SETTINGS, 0, 0, &settings);
        frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - DEFAULT_WINDOW).to_be_bytes());
        out
    }

    pub(crate) fn request(&mut self, out: &mut Vec<u8>) -> u32 {
        let stream = self.next;
        self.next += 2;
        let block = if stream == 1 { &self.first } else { LATER };
        frame(out, HEADERS, END_HEADERS | END_STREAM, stream, block);
        stream
    }

    pub(crate) fn receive(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        mut done: impl FnMut(u32),
    ) -> Result<(), String> {
        loop {
            if let Some((remaining, ends)) = self.data {
                let taken = remaining.min(bytes.len());
                bytes = &bytes[taken..];
                self.data = (remaining > taken).then_some((remaining - taken, ends));
                match (self.data, ends) {
                    (Some(_), _) => return Ok(()),
                    (None, Some(stream)) => done(stream),
                    (None, None) => {}
                }
            }
            // Most frames are whole and needn't be copied.
            let whole = if self.partial.is_empty() { Frame::of(bytes)? } else { None };
            let taken = match whole {
                Some(frame) => {
                    self.take(&frame, out, &mut done)?;
                    frame.length
                }
                None => {
                    let wanted = wanted(&self.partial, bytes);
                    let (part, _) = bytes.split_at(wanted.min(bytes.len()));
                    self.partial.extend_from_slice(part);
                    let partial = std::mem::take(&mut self.partial);
                    match Frame::of(&partial)? {
                        Some(frame) => self.take(&frame, out, &mut done)?,
                        None if part.is_empty() => {
                            self.partial = partial;
                            return Ok(());
                        }
                        None => self.partial = partial,
                    }
                    part.len()
                }
            };
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>, done: &mut impl FnMut(u32)) -> Result<(), String> {
        let ends = (frame.flags & END_STREAM != 0).then_some(frame.stream);
        match frame.kind {
            DATA => {
                match (frame.data, ends) {
                    (0, Some(stream)) => done(stream),
                    (0, None) => {}
                    (data, ends) => self.data = Some((data, ends)),
                }
                self.received += u32::try_from(frame.data).unwrap_or_default();
                if self.received > REPLENISH_BYTES {
                    self::frame(out, WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
                    self.received = 0;
                }
            }
            HEADERS => {
                // Changes of the table's size may come first. Trailers don't come.
                let status = frame.payload.iter().find(|byte| !(0x20..0x40).contains(*byte));
                if status != Some(&STATUS_200) || frame.flags & END_HEADERS == 0 {
                    return Err(format!("a response that is no plain 200: {:02x?}", frame.payload));
                }
                if let Some(stream) = ends {
                    done(stream);
                }
            }
            SETTINGS | PING if frame.flags & ACK == 0 => {
                let payload = if frame.kind == PING { frame.payload } else { &[] };
                self::frame(out, frame.kind, ACK, 0, payload);
            }
            RST_STREAM | GOAWAY => return Err(format!("a frame that gives up: {frame:?}")),
            _ => {}
        }
        Ok(())
    }
}

/// How many of these bytes the frame needs that `partial` is the beginning of.
fn wanted(partial: &[u8], bytes: &[u8]) -> usize {
    let header: Vec<u8> = partial.iter().chain(bytes).take(FRAME_HEADER_BYTES).copied().collect();
    let payload = match header.as_slice() {
        [high, middle, low, kind, ..] if header.len() == FRAME_HEADER_BYTES && *kind != DATA => {
            u32::from_be_bytes([0, *high, *middle, *low]) as usize
        }
        _ => 0,
    };
    (FRAME_HEADER_BYTES + payload).saturating_sub(partial.len())
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // INVARIANT: frames made here are shorter than 2^24 bytes.
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A frame, of DATA only the header.
#[derive(Debug)]
struct Frame<'b> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'b [u8],
    /// Bytes of DATA.
    data: usize,
    /// Bytes of what is here of it.
    length: usize,
}

// === impl Frame ===

impl<'b> Frame<'b> {
    /// The frame that these bytes begin with, if it is there.
    fn of(bytes: &'b [u8]) -> Result<Option<Self>, String> {
        let [high, middle, low, kind, flags, a, b, c, d, rest @ ..] = bytes else { return Ok(None) };
        let (kind, flags, stream) = (*kind, *flags, u32::from_be_bytes([*a, *b, *c, *d]) & WINDOW);
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        if kind == DATA {
            return Ok(Some(Self { kind, flags, stream, payload: &[], data: length, length: FRAME_HEADER_BYTES }));
        }
        if length > MAX_FRAME_BYTES {
            return Err(format!("a frame of kind {kind} with {length} bytes"));
        }
        let payload = rest.get(..length);
        Ok(payload.map(|payload| Self { kind, flags, stream, payload, data: 0, length: FRAME_HEADER_BYTES + length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_counted_however_they_are_cut() {
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &[0x3f, STATUS_200, 0xc0]);
        frame(&mut bytes, DATA, 0, 1, &[7; 100]);
        frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 3, &[STATUS_200]);
        frame(&mut bytes, PING, 0, 0, &[5; 8]);
        frame(&mut bytes, DATA, END_STREAM, 1, &[]);
        for cut in 0..bytes.len() {
            let (mut codec, mut out, mut done) = (Http2::new("/bytes/100"), Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                codec.receive(part, &mut out, |stream| done.push(stream)).expect("valid frames");
            }
            assert_eq!(done, [3, 1], "{cut}");
            assert_eq!(out.len(), FRAME_HEADER_BYTES + FRAME_HEADER_BYTES + 8, "settings and ping are acknowledged");
        }
    }

    #[test]
    fn what_is_no_200_is_an_error() {
        let refused: [(u8, &[u8]); 3] =
            [(HEADERS, &[0x48, 3, b'4', b'0', b'3']), (RST_STREAM, &[0; 4]), (GOAWAY, &[0; 8])];
        for (kind, payload) in refused {
            let mut bytes = Vec::new();
            frame(&mut bytes, kind, END_HEADERS | END_STREAM, 1, payload);
            assert!(Http2::new("/").receive(&bytes, &mut Vec::new(), |_| {}).is_err(), "{kind}");
        }
    }
}
