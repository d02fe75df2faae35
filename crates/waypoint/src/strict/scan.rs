//! The framing of HTTP/1 requests, in the one form that every reader understands alike (RFC 9112).

use crate::{limits::MAX_CHUNK_LINE_BYTES, refusals::Refusal};

/// Follows a stream of requests over any division into reads.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    state: State,
    head: Head,
    /// Digits or bytes of the present chunk's line.
    line_bytes: usize,
    requests: u64,
}

/// What stands in some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing against them.
    Nothing,
    /// A request without body asks to switch protocols; it ends here.
    Asked {
        /// Index after its last byte.
        end: usize,
    },
    /// What has more than one reading.
    Refused {
        /// Index of the first byte that may not pass.
        at: usize,
        /// It is in a head, not in a body.
        in_head: bool,
        /// Why.
        refusal: Refusal,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a request, where empty lines mean nothing.
    #[default]
    Blank,
    BlankEnd,
    Line,
    LineEnd,
    FieldStart,
    Name,
    Value,
    ValueEnd,
    HeadEnd,
    Body(u64),
    SizeStart,
    Size(u64),
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataReturn,
    DataEnd,
    TrailerStart,
    Trailer,
    TrailerEnd,
    BodyEnd,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    /// Last byte of the request line: the minor version.
    version: u8,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    field: Field,
    text: Text,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Field {
    #[default]
    Other,
    Length,
    Encoding,
}

/// The beginning of a name or value; longer ones mean nothing here, or are refused.
#[derive(Debug, Default)]
struct Text {
    bytes: [u8; MAX_TEXT_BYTES],
    length: usize,
}

const MAX_TEXT_BYTES: usize = 20;
/// Lengths of more digits may not fit.
const MAX_LENGTH_DIGITS: usize = 18;
/// The same in hexadecimal.
const MAX_SIZE_DIGITS: usize = 15;

type Step = Result<State, Refusal>;

// === impl Scanner ===

impl Scanner {
    /// How many requests came so far, if the last one is whole and nothing of another has come.
    pub(super) fn whole(&self) -> Option<u64> {
        (self.state == State::Blank).then_some(self.requests)
    }

    /// Looks at the next bytes of the stream. Nothing may be scanned after a refusal.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Found {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            at += match self.skip(&bytes[at..]) {
                0 => {
                    let was = self.state;
                    match self.step(byte) {
                        Ok(next) => self.state = next,
                        Err(refusal) => return Found::Refused { at, in_head: was.is_head(), refusal },
                    }
                    if was == State::HeadEnd {
                        self.requests += 1;
                        if self.end_head() {
                            return Found::Asked { end: at + 1 };
                        }
                    }
                    1
                }
                skipped => skipped,
            };
        }
        Found::Nothing
    }

    /// How many of these bytes change nothing but a count.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        let counted = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let text = || bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
        match self.state {
            State::Body(left) => {
                let passed = counted(left);
                let left = left - passed as u64;
                self.state = if left == 0 { State::Blank } else { State::Body(left) };
                passed
            }
            State::Data(left) => {
                let passed = counted(left);
                let left = left - passed as u64;
                self.state = if left == 0 { State::DataReturn } else { State::Data(left) };
                passed
            }
            State::Value if self.head.field == Field::Other => text(),
            State::Trailer => text(),
            State::Line => {
                let passed = text();
                if let Some(last) = passed.checked_sub(1) {
                    self.head.version = bytes[last];
                }
                passed
            }
            _ => 0,
        }
    }

    fn step(&mut self, byte: u8) -> Step {
        match self.state {
            State::Blank => match byte {
                b'\r' => Ok(State::BlankEnd),
                b'\n' => Err(Refusal::BareLineFeed),
                _ => {
                    self.head = Head { version: byte, ..Head::default() };
                    Ok(State::Line)
                }
            },
            State::BlankEnd => line_feed(byte, State::Blank),
            State::Line => end_of_line(byte, State::LineEnd),
            State::LineEnd | State::ValueEnd => line_feed(byte, State::FieldStart),
            State::FieldStart => match byte {
                b'\r' => Ok(State::HeadEnd),
                b'\n' => Err(Refusal::BareLineFeed),
                b' ' | b'\t' => Err(Refusal::FoldedLine),
                _ => {
                    self.head.text = Text::default();
                    self.head.name(byte)
                }
            },
            State::Name => self.head.name(byte),
            State::Value => match byte {
                b'\r' => self.head.end_value().map(|()| State::ValueEnd),
                b'\n' => Err(Refusal::BareLineFeed),
                _ => self.head.value(byte),
            },
            State::HeadEnd => line_feed(byte, State::Blank),
            _ => self.step_body(byte),
        }
    }

    fn step_body(&mut self, byte: u8) -> Step {
        let invalid = Err(Refusal::InvalidChunk);
        match (self.state, byte) {
            (State::SizeStart, _) => {
                self.line_bytes = 0;
                self.digit(0, byte)
            }
            (State::Size(size) | State::Extension(size), b'\r') => Ok(State::SizeEnd(size)),
            (State::Size(size), b';') => Ok(State::Extension(size)),
            (State::Size(size), _) => self.digit(size, byte),
            (State::Extension(size), b'\t' | b' '..=b'~' | 0x80..) if self.line_bytes < MAX_CHUNK_LINE_BYTES => {
                self.line_bytes += 1;
                Ok(State::Extension(size))
            }
            (State::SizeEnd(0), b'\n') => Ok(State::TrailerStart),
            (State::SizeEnd(size), b'\n') => Ok(State::Data(size)),
            (State::DataReturn, b'\r') => Ok(State::DataEnd),
            (State::DataEnd, b'\n') => Ok(State::SizeStart),
            (State::TrailerStart, b'\r') => Ok(State::BodyEnd),
            (State::TrailerStart, b'\n' | b' ' | b'\t') => Err(Refusal::InvalidTrailer),
            (State::TrailerStart, _) => Ok(State::Trailer),
            (State::Trailer, b'\r') => Ok(State::TrailerEnd),
            (State::TrailerEnd, b'\n') => Ok(State::TrailerStart),
            (State::Trailer | State::TrailerEnd, _) => Err(Refusal::InvalidTrailer),
            (State::BodyEnd, b'\n') => Ok(State::Blank),
            _ => invalid,
        }
    }

    fn digit(&mut self, size: u64, byte: u8) -> Step {
        let digit = char::from(byte).to_digit(16).ok_or(Refusal::InvalidChunk)?;
        self.line_bytes += 1;
        if self.line_bytes > MAX_SIZE_DIGITS {
            return Err(Refusal::InvalidChunk);
        }
        Ok(State::Size(size * 16 + u64::from(digit)))
    }

    /// Goes on with what follows the head, and tells whether that has to be seen.
    fn end_head(&mut self) -> bool {
        self.state = match (self.head.chunked, self.head.length) {
            (true, _) => State::SizeStart,
            (false, None | Some(0)) => State::Blank,
            (false, Some(length)) => State::Body(length),
        };
        self.head.upgrade && self.state == State::Blank
    }
}

// === impl State ===

impl State {
    fn is_head(self) -> bool {
        use State::{Blank, BlankEnd, FieldStart, HeadEnd, Line, LineEnd, Name, Value, ValueEnd};
        matches!(self, Blank | BlankEnd | Line | LineEnd | FieldStart | Name | Value | ValueEnd | HeadEnd)
    }
}

// === impl Head ===

impl Head {
    fn name(&mut self, byte: u8) -> Step {
        match byte {
            b':' => {
                self.field = self.field_of_name();
                self.text = Text::default();
                Ok(State::Value)
            }
            b' ' | b'\t' | b'\r' | b'\n' => Err(Refusal::SpaceInName),
            _ => {
                self.text.push(byte);
                Ok(State::Name)
            }
        }
    }

    /// A byte of a framing field's value. One that is valid in no value is refused where it stands: the server could see it
    /// before the end of the line does, and count another reason.
    fn value(&mut self, byte: u8) -> Step {
        let control = byte.is_ascii_control() && byte != b'\t';
        match self.field {
            Field::Length if control => Err(Refusal::InvalidLength),
            Field::Encoding if control => Err(Refusal::UnknownEncoding),
            _ => {
                self.text.push_value(byte);
                Ok(State::Value)
            }
        }
    }

    fn field_of_name(&mut self) -> Field {
        let is = |name: &[u8]| self.text.whole().is_some_and(|text| text.eq_ignore_ascii_case(name));
        if is(b"content-length") {
            return Field::Length;
        }
        if is(b"transfer-encoding") {
            return Field::Encoding;
        }
        self.upgrade |= is(b"upgrade");
        Field::Other
    }

    fn end_value(&mut self) -> Result<(), Refusal> {
        match self.field {
            Field::Other => Ok(()),
            Field::Length => {
                let length = self.text.whole().and_then(length).ok_or(Refusal::InvalidLength)?;
                match (self.chunked, self.length.replace(length)) {
                    (true, _) => Err(Refusal::LengthAndEncoding),
                    (false, Some(_)) => Err(Refusal::RepeatedLength),
                    (false, None) => Ok(()),
                }
            }
            Field::Encoding => {
                let value = self.text.whole().map(<[u8]>::trim_ascii_end);
                if self.length.is_some() {
                    Err(Refusal::LengthAndEncoding)
                } else if self.chunked {
                    Err(Refusal::RepeatedEncoding)
                } else if self.version == b'0' {
                    Err(Refusal::EncodingInHttp10)
                } else if value.is_some_and(|value| value.eq_ignore_ascii_case(b"chunked")) {
                    self.chunked = true;
                    Ok(())
                } else {
                    Err(Refusal::UnknownEncoding)
                }
            }
        }
    }
}

// === impl Text ===

impl Text {
    fn push(&mut self, byte: u8) {
        if let Some(free) = self.bytes.get_mut(self.length) {
            *free = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    fn push_value(&mut self, byte: u8) {
        if self.length > 0 || !matches!(byte, b' ' | b'\t') {
            self.push(byte);
        }
    }

    /// All of it, if it fits.
    fn whole(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

fn length(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii_end();
    if digits.is_empty() || digits.len() > MAX_LENGTH_DIGITS {
        return None;
    }
    digits.iter().try_fold(0, |sum: u64, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

fn end_of_line(byte: u8, next: State) -> Step {
    match byte {
        b'\r' => Ok(next),
        b'\n' => Err(Refusal::BareLineFeed),
        // What comes before it was skipped.
        _ => Ok(State::Line),
    }
}

fn line_feed(byte: u8, next: State) -> Step {
    if byte == b'\n' { Ok(next) } else { Err(Refusal::BareCarriageReturn) }
}

#[cfg(test)]
mod tests;
