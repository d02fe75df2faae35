//! Takes frames apart (RFC 9113 4 and 6). The bytes may come in whatever pieces, and DATA is not kept: of that it tells
//! where it lies.

use std::ops::Range;

use super::{
    frame::{ACK, Code, END_HEADERS, END_STREAM, HEAD_BYTES, PADDED, PREFACE, PRIORITY, Violation, kind, violation},
    head::Fields,
    hpack::Decoder,
};
use crate::limits::{MAX_CONTROL_FRAME_BYTES, MAX_HEADER_BLOCK_BYTES};

/// Something the peer said.
#[derive(Debug)]
pub(crate) enum Event {
    /// A piece of a DATA frame. `charged` bytes count against the windows: the piece and its padding.
    Data {
        stream: u32,
        range: Range<usize>,
        charged: u32,
        end: bool,
    },
    Headers {
        stream: u32,
        fields: Box<Fields>,
        end: bool,
    },
    Reset {
        stream: u32,
        code: Code,
    },
    Settings(Vec<(u16, u32)>),
    SettingsAck,
    Ping([u8; 8]),
    Pong([u8; 8]),
    GoAway {
        last: u32,
        code: Code,
    },
    WindowUpdate {
        stream: u32,
        increment: u32,
    },
}

/// Takes a connection's bytes apart.
pub(crate) struct Parser {
    phase: Phase,
    decoder: Decoder,
    /// A header block that is not complete.
    block: Option<Block>,
    max_frame_bytes: u32,
    header_list_bytes: usize,
    /// The first frame must be SETTINGS.
    started: bool,
}

enum Phase {
    /// This much of the preface has come.
    Preface(usize),
    Head {
        bytes: [u8; HEAD_BYTES],
        have: usize,
    },
    /// A DATA frame whose first byte tells the padding.
    Padding {
        head: Head,
    },
    Data {
        head: Head,
        data: u32,
        padding: u32,
    },
    Payload {
        head: Head,
        bytes: Vec<u8>,
    },
    Skip {
        left: u32,
    },
}

#[derive(Clone, Copy)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

struct Block {
    stream: u32,
    end: bool,
    bytes: Vec<u8>,
}

// === impl Parser ===

impl Parser {
    /// For a server's connection (`preface`: the client's comes first) or a client's. `max_frame_bytes` and
    /// `header_list_bytes` are what the peer was told.
    pub(crate) fn new(preface: bool, max_frame_bytes: u32, header_list_bytes: usize) -> Self {
        let phase = if preface { Phase::Preface(0) } else { Phase::start() };
        Self { phase, decoder: Decoder::default(), block: None, max_frame_bytes, header_list_bytes, started: false }
    }

    /// Takes all of `input`, which lies at `base` of the buffer that ranges of events refer to.
    pub(crate) fn parse(&mut self, input: &[u8], base: usize, events: &mut Vec<Event>) -> Result<(), Violation> {
        let mut at = 0;
        while at < input.len() {
            at += self.step(&input[at..], base + at, events)?;
        }
        Ok(())
    }

    /// Takes some bytes; gives how many.
    fn step(&mut self, input: &[u8], base: usize, events: &mut Vec<Event>) -> Result<usize, Violation> {
        match &mut self.phase {
            Phase::Preface(have) => {
                let expected = &PREFACE[*have..];
                let length = input.len().min(expected.len());
                if input[..length] != expected[..length] {
                    return violation(Code::PROTOCOL_ERROR, "the peer doesn't speak HTTP/2");
                }
                *have += length;
                if *have == PREFACE.len() {
                    self.phase = Phase::start();
                }
                Ok(length)
            }
            Phase::Head { bytes, have } => {
                let length = input.len().min(HEAD_BYTES - *have);
                bytes[*have..*have + length].copy_from_slice(&input[..length]);
                *have += length;
                if *have == HEAD_BYTES {
                    let head = Head::parse(bytes);
                    self.begin(head, events)?;
                }
                Ok(length)
            }
            Phase::Padding { head } => {
                let (head, padding) = (*head, u32::from(input[0]));
                let Some(data) = (head.length - 1).checked_sub(padding) else {
                    return violation(Code::PROTOCOL_ERROR, "a frame has more padding than payload");
                };
                // The byte that tells the padding counts as padding.
                let end = data == 0 && head.flags & END_STREAM != 0;
                events.push(Event::Data { stream: head.stream, range: 0..0, charged: 1 + padding, end });
                self.phase = Phase::data(head, data, padding);
                Ok(1)
            }
            Phase::Data { head, data, padding } => {
                let length = input.len().min(*data as usize);
                *data -= length as u32;
                let end = *data == 0 && head.flags & END_STREAM != 0;
                let range = base..base + length;
                events.push(Event::Data { stream: head.stream, range, charged: length as u32, end });
                if *data == 0 {
                    self.phase = Phase::skip(*padding);
                }
                Ok(length)
            }
            Phase::Payload { head, bytes } => {
                let length = input.len().min(head.length as usize - bytes.len());
                bytes.extend_from_slice(&input[..length]);
                if bytes.len() == head.length as usize {
                    let (head, bytes) = (*head, std::mem::take(bytes));
                    self.phase = Phase::start();
                    self.finish(head, &bytes, events)?;
                }
                Ok(length)
            }
            Phase::Skip { left } => {
                let length = input.len().min(*left as usize);
                *left -= length as u32;
                if *left == 0 {
                    self.phase = Phase::start();
                }
                Ok(length)
            }
        }
    }

    /// A frame's head has come.
    fn begin(&mut self, head: Head, events: &mut Vec<Event>) -> Result<(), Violation> {
        if head.length > self.max_frame_bytes {
            return violation(Code::FRAME_SIZE_ERROR, "a frame is too large");
        }
        if !self.started && (head.kind != kind::SETTINGS || head.flags & ACK != 0) {
            return violation(Code::PROTOCOL_ERROR, "the first frame is not SETTINGS");
        }
        self.started = true;
        if self.block.as_ref().is_some_and(|block| head.kind != kind::CONTINUATION || head.stream != block.stream) {
            return violation(Code::PROTOCOL_ERROR, "a header block is interrupted");
        }
        let connection_level = matches!(head.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        let stream_level = matches!(head.kind, kind::DATA | kind::HEADERS | kind::RST_STREAM | kind::CONTINUATION);
        if connection_level && head.stream != 0 || stream_level && head.stream == 0 {
            return violation(Code::PROTOCOL_ERROR, "a frame is on a stream where it has no place");
        }
        self.phase = match head.kind {
            kind::DATA if head.flags & PADDED != 0 && head.length == 0 => {
                return violation(Code::FRAME_SIZE_ERROR, "a padded frame has no payload");
            }
            kind::DATA if head.flags & PADDED != 0 => Phase::Padding { head },
            kind::DATA => {
                if head.length == 0 && head.flags & END_STREAM != 0 {
                    events.push(Event::Data { stream: head.stream, range: 0..0, charged: 0, end: true });
                }
                Phase::data(head, head.length, 0)
            }
            kind::PUSH_PROMISE => return violation(Code::PROTOCOL_ERROR, "a push was not asked for"),
            kind::HEADERS | kind::CONTINUATION => {
                let before = self.block.as_ref().map_or(0, |block| block.bytes.len());
                if before + head.length as usize > MAX_HEADER_BLOCK_BYTES {
                    return violation(Code::ENHANCE_YOUR_CALM, "a header block is too large");
                }
                Phase::Payload { head, bytes: Vec::with_capacity(head.length as usize) }
            }
            kind::SETTINGS | kind::PING | kind::GOAWAY | kind::RST_STREAM | kind::WINDOW_UPDATE => {
                if head.length > MAX_CONTROL_FRAME_BYTES {
                    return violation(Code::FRAME_SIZE_ERROR, "a control frame is too large");
                }
                Phase::Payload { head, bytes: Vec::with_capacity(head.length as usize) }
            }
            // Priorities and what later standards add.
            _ => Phase::skip(head.length),
        };
        if let Phase::Payload { head: Head { length: 0, .. }, .. } = self.phase {
            self.phase = Phase::start();
            self.finish(head, &[], events)?;
        }
        Ok(())
    }

    /// All of a frame other than DATA has come.
    fn finish(&mut self, head: Head, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Violation> {
        let size_error = || violation(Code::FRAME_SIZE_ERROR, "a control frame has the wrong size");
        let number = |at: usize| -> Option<u32> { Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
        let stream = head.stream;
        match (head.kind, head.length) {
            (kind::HEADERS, _) => {
                let fragment = unpadded(head, bytes)?;
                let end = head.flags & END_STREAM != 0;
                self.fragment(Block { stream, end, bytes: fragment.to_vec() }, head.flags, events)?;
            }
            (kind::CONTINUATION, _) => {
                let Some(mut block) = self.block.take() else {
                    return violation(Code::PROTOCOL_ERROR, "a header block goes on that never began");
                };
                block.bytes.extend_from_slice(bytes);
                self.fragment(block, head.flags, events)?;
            }
            (kind::RST_STREAM, 4) => events.push(Event::Reset { stream, code: Code(number(0).unwrap_or_default()) }),
            (kind::SETTINGS, 0) if head.flags & ACK != 0 => events.push(Event::SettingsAck),
            (kind::SETTINGS, length) if head.flags & ACK == 0 && length % 6 == 0 => {
                let setting = |six: &[u8]| match *six {
                    [a, b, c, d, e, f] => Some((u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]))),
                    _ => None,
                };
                events.push(Event::Settings(bytes.chunks_exact(6).filter_map(setting).collect()));
            }
            (kind::PING, 8) => {
                let Ok(payload) = bytes.try_into() else { return size_error() };
                events.push(if head.flags & ACK == 0 { Event::Ping(payload) } else { Event::Pong(payload) });
            }
            (kind::GOAWAY, 8..) => {
                let (last, code) = (number(0).unwrap_or_default(), number(4));
                events.push(Event::GoAway { last: last & 0x7fff_ffff, code: Code(code.unwrap_or_default()) });
            }
            (kind::WINDOW_UPDATE, 4) => {
                let increment = number(0).unwrap_or_default() & 0x7fff_ffff;
                events.push(Event::WindowUpdate { stream, increment });
            }
            _ => return size_error(),
        }
        Ok(())
    }

    /// A part of a header block has come; the last one is decoded with those before it.
    fn fragment(&mut self, block: Block, flags: u8, events: &mut Vec<Event>) -> Result<(), Violation> {
        if flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = Box::<Fields>::default();
        let limit = self.header_list_bytes;
        let decoded = self.decoder.decode(&block.bytes, |name, value| fields.add(name, value, limit));
        decoded.map_err(|_| Violation { code: Code::COMPRESSION_ERROR, reason: "a header block is corrupt" })?;
        events.push(Event::Headers { stream: block.stream, fields, end: block.end });
        Ok(())
    }
}

/// A HEADERS frame's fragment without padding and priority.
fn unpadded(head: Head, bytes: &[u8]) -> Result<&[u8], Violation> {
    let mut fragment = bytes;
    let too_short = Violation { code: Code::FRAME_SIZE_ERROR, reason: "a HEADERS frame is too short" };
    if head.flags & PADDED != 0 {
        let (&padding, rest) = fragment.split_first().ok_or(too_short.clone())?;
        let Some(length) = rest.len().checked_sub(usize::from(padding)) else {
            return violation(Code::PROTOCOL_ERROR, "a frame has more padding than payload");
        };
        fragment = &rest[..length];
    }
    if head.flags & PRIORITY != 0 {
        fragment = fragment.get(5..).ok_or(too_short)?;
    }
    Ok(fragment)
}

// === impl Phase ===

impl Phase {
    fn start() -> Self {
        Self::Head { bytes: [0; HEAD_BYTES], have: 0 }
    }

    fn skip(left: u32) -> Self {
        if left == 0 { Self::start() } else { Self::Skip { left } }
    }

    fn data(head: Head, data: u32, padding: u32) -> Self {
        if data == 0 { Self::skip(padding) } else { Self::Data { head, data, padding } }
    }
}

// === impl Head ===

impl Head {
    fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, d, e, f, g] = *bytes;
        let stream = u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff;
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }
}
