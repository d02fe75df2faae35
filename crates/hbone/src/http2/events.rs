//! What the peer says changes the state.

use bytes::Bytes;

use super::{
    frame::{self, ACK, Code, DEFAULT_MAX_FRAME_BYTES, MAX_WINDOW_BYTES, Violation, kind, setting, violation},
    head::Fields,
    parser::Event,
    state::{Broken, Drain, Role, State, Stream},
};

/// The payload of the ping whose answer shows that the peer has seen our GOAWAY.
pub(super) const DRAIN_PING: [u8; 8] = *b"draining";
/// The stream a first GOAWAY names as the last: all there can be.
const ALL_STREAMS: u32 = 0x7fff_ffff;

/// The bytes that the ranges of events refer to.
pub(super) enum Received<'b> {
    /// Alive only for now.
    Lent(&'b [u8]),
    /// To keep as it is, for streams that have a large part in it.
    Shared(&'b Bytes, [u32; SHARING_STREAMS]),
}

/// Streams that can share a buffer. Each has its part of it, so that one whose reader stalls keeps no more than this
/// many times its bytes alive.
pub(super) const SHARING_STREAMS: usize = 4;

// === impl State ===

impl State {
    /// Takes in one event. Gives the payload of a PONG that is not for this.
    pub(super) fn apply(&mut self, event: Event, received: &Received<'_>) -> Result<Option<[u8; 8]>, Violation> {
        match event {
            Event::Data { stream, range, charged, end } => {
                let (bytes, shared) = match received {
                    Received::Lent(bytes) => (&bytes[range.clone()], None),
                    Received::Shared(bytes, streams) => {
                        (&bytes[range.clone()], streams.contains(&stream).then_some(*bytes))
                    }
                };
                self.data(stream, bytes, charged, end, || shared.map(|bytes| bytes.slice(range)))?;
            }
            Event::Headers { stream, fields, end } => match self.role {
                Role::Server => self.request(stream, *fields, end)?,
                Role::Client => self.response(stream, *fields, end)?,
            },
            Event::Reset { stream, code } => {
                self.not_idle(stream)?;
                let unprocessed = code == Code::REFUSED_STREAM && self.role == Role::Client;
                self.fail(stream, if unprocessed { Broken::Unprocessed } else { Broken::Peer(code) });
            }
            Event::Settings(settings) => self.settings(&settings)?,
            Event::SettingsAck => {}
            Event::Ping(payload) => {
                frame::write(&mut self.control, kind::PING, ACK, 0, &payload);
            }
            Event::Pong(DRAIN_PING) if self.drain == Drain::Announced => self.tell_last(),
            Event::Pong(payload) => return Ok(Some(payload)),
            Event::GoAway { last, code } => self.go_away(last, code),
            Event::WindowUpdate { stream, increment } => self.window_update(stream, increment)?,
        }
        Ok(None)
    }

    fn data(
        &mut self,
        id: u32,
        bytes: &[u8],
        charged: u32,
        end: bool,
        shared: impl FnOnce() -> Option<Bytes>,
    ) -> Result<(), Violation> {
        self.not_idle(id)?;
        self.recv_window -= i64::from(charged);
        if self.recv_window < 0 {
            return violation(Code::FLOW_CONTROL_ERROR, "the peer overran the connection's window");
        }
        let role = self.role;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.broken.is_none() && stream.held) else {
            // It was reset, or nobody reads it; the connection's window must not suffer.
            if end && let Some(stream) = self.streams.get_mut(&id) {
                stream.recv_closed = true;
                self.reap(id);
            }
            self.give_back(charged as usize);
            return Ok(());
        };
        stream.recv_window -= i64::from(charged);
        if stream.recv_window < 0 {
            return violation(Code::FLOW_CONTROL_ERROR, "the peer overran a stream's window");
        }
        let early = role == Role::Client && !stream.answered;
        if stream.recv_closed || early {
            self.reset(id, Code::PROTOCOL_ERROR);
            self.give_back(charged as usize);
            return Ok(());
        }
        if !bytes.is_empty() {
            stream.receive(bytes, shared);
        }
        stream.recv_closed = end;
        let padding = charged as usize - bytes.len();
        stream.credit += padding as u32;
        let reader = stream.reader.take();
        self.wake(reader);
        if padding > 0 {
            self.give_back(padding);
        }
        Ok(())
    }

    /// HEADERS from a client: a request, or what ends one.
    fn request(&mut self, id: u32, fields: Fields, end: bool) -> Result<(), Violation> {
        if id <= self.last {
            self.trailers(id, end);
            return Ok(());
        }
        if id.is_multiple_of(2) {
            return violation(Code::PROTOCOL_ERROR, "a client opened a stream with a server's number");
        }
        if self.drain == Drain::Last || self.users == 0 {
            frame::write(&mut self.control, kind::RST_STREAM, 0, id, &Code::REFUSED_STREAM.0.to_be_bytes());
            return Ok(());
        }
        self.last = id;
        if self.streams.len() >= self.config.max_accepted as usize {
            frame::write(&mut self.control, kind::RST_STREAM, 0, id, &Code::REFUSED_STREAM.0.to_be_bytes());
            return Ok(());
        }
        if fields.is_too_large(self.config.header_list as usize) {
            let mut block = Vec::new();
            super::hpack::encode(b":status", b"431", &mut block);
            frame::write_headers(&mut self.control, id, &block, true, self.peer.max_frame);
            frame::write(&mut self.control, kind::RST_STREAM, 0, id, &Code::NO_ERROR.0.to_be_bytes());
            return Ok(());
        }
        let Ok(head) = fields.into_request() else {
            frame::write(&mut self.control, kind::RST_STREAM, 0, id, &Code::PROTOCOL_ERROR.0.to_be_bytes());
            return Ok(());
        };
        self.insert(id, Stream { request: Some(Box::new(head)), recv_closed: end, ..Stream::default() });
        self.requests.push_back(id);
        let acceptor = self.acceptor.take();
        self.wake(acceptor);
        Ok(())
    }

    /// HEADERS from a server: a response, or what ends one.
    fn response(&mut self, id: u32, fields: Fields, end: bool) -> Result<(), Violation> {
        self.not_idle(id)?;
        let too_large = fields.is_too_large(self.config.header_list as usize);
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.broken.is_none()) else { return Ok(()) };
        if stream.answered {
            self.trailers(id, end);
            return Ok(());
        }
        match fields.into_response() {
            Ok(head) if !too_large && head.status.is_informational() && !end => {}
            Ok(head) if !too_large => {
                stream.response = Some(Box::new(head));
                stream.answered = true;
                stream.recv_closed = end;
                let reader = stream.reader.take();
                self.wake(reader);
            }
            _ => self.reset(id, Code::PROTOCOL_ERROR),
        }
        Ok(())
    }

    fn trailers(&mut self, id: u32, end: bool) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.broken.is_none()) else { return };
        if !end || stream.recv_closed {
            return self.reset(id, Code::PROTOCOL_ERROR);
        }
        stream.recv_closed = true;
        let reader = stream.reader.take();
        self.wake(reader);
        self.reap(id);
    }

    fn settings(&mut self, settings: &[(u16, u32)]) -> Result<(), Violation> {
        for &(id, value) in settings {
            match id {
                setting::INITIAL_WINDOW_SIZE => {
                    if i64::from(value) > MAX_WINDOW_BYTES {
                        return violation(Code::FLOW_CONTROL_ERROR, "the peer's initial window is too large");
                    }
                    let change = i64::from(value) - i64::from(self.peer.window);
                    self.peer.window = value;
                    let ids: Vec<u32> = self.streams.keys().copied().collect();
                    for id in ids {
                        self.widen(id, change)?;
                    }
                }
                setting::MAX_FRAME_SIZE if !(DEFAULT_MAX_FRAME_BYTES..1 << 24).contains(&value) => {
                    return violation(Code::PROTOCOL_ERROR, "the peer's largest frame is out of bounds");
                }
                setting::MAX_FRAME_SIZE => self.peer.max_frame = value,
                setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = Some(value),
                setting::ENABLE_PUSH if value > 1 || self.role == Role::Client && value == 1 => {
                    return violation(Code::PROTOCOL_ERROR, "the peer's setting for push is none");
                }
                _ => {}
            }
        }
        frame::write(&mut self.control, kind::SETTINGS, ACK, 0, &[]);
        Ok(())
    }

    fn window_update(&mut self, id: u32, increment: u32) -> Result<(), Violation> {
        if id == 0 {
            self.send_window += i64::from(increment);
            if increment == 0 || self.send_window > MAX_WINDOW_BYTES {
                return violation(Code::FLOW_CONTROL_ERROR, "the peer's window update is none, or too much");
            }
            return Ok(());
        }
        self.not_idle(id)?;
        if increment == 0 {
            self.reset(id, Code::PROTOCOL_ERROR);
            return Ok(());
        }
        self.widen(id, i64::from(increment))
    }

    fn widen(&mut self, id: u32, by: i64) -> Result<(), Violation> {
        if let Some(stream) = self.streams.get_mut(&id) {
            if !stream.widen(by) {
                return violation(Code::FLOW_CONTROL_ERROR, "a stream's window grew too large");
            }
            self.list(id);
        }
        Ok(())
    }

    fn go_away(&mut self, last: u32, _code: Code) {
        self.going_away = true;
        if self.role == Role::Client {
            let unprocessed: Vec<u32> = self.streams.keys().copied().filter(|id| *id > last).collect();
            for id in unprocessed {
                self.fail(id, Broken::Unprocessed);
            }
        }
        self.wake_driver();
    }

    /// Announces the end: streams are still taken until the peer has surely heard of it.
    pub(super) fn announce_drain(&mut self) {
        if self.drain == Drain::No {
            self.drain = Drain::Announced;
            self.write_go_away(ALL_STREAMS, Code::NO_ERROR);
            frame::write(&mut self.control, kind::PING, 0, 0, &DRAIN_PING);
            self.wake_driver();
        }
    }

    fn tell_last(&mut self) {
        self.drain = Drain::Last;
        self.write_go_away(self.last, Code::NO_ERROR);
        self.wake_driver();
    }

    /// Tells the peer that the connection ends, and why.
    pub(super) fn write_go_away(&mut self, last: u32, code: Code) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&last.to_be_bytes());
        payload[4..].copy_from_slice(&code.0.to_be_bytes());
        frame::write(&mut self.control, kind::GOAWAY, 0, 0, &payload);
    }

    /// A frame on a stream that nobody has opened yet makes no sense.
    fn not_idle(&self, id: u32) -> Result<(), Violation> {
        // Only clients open streams, and theirs are odd.
        if id > self.last || id.is_multiple_of(2) {
            return violation(Code::PROTOCOL_ERROR, "a frame is on a stream that was never opened");
        }
        Ok(())
    }
}
