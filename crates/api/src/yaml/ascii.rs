//! Text of one byte a character, as the parser's input.

use saphyr_parser::Input;

/// Characters that the parser may look ahead, and looks ahead at a time in a plain scalar.
const LOOK_AHEAD: usize = 16;

/// An input over a text of ASCII characters other than NUL, which stands for its end.
pub(super) struct Ascii<'t> {
    rest: &'t [u8],
}

// === impl Ascii ===

impl<'t> Ascii<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        debug_assert!(text.is_ascii(), "positions are counted in characters");
        Self { rest: text.as_bytes() }
    }

    fn take(&mut self, count: usize) -> &'t [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn leading(&self, is_one: impl Fn(u8) -> bool) -> usize {
        self.rest.iter().position(|byte| !is_one(*byte)).unwrap_or(self.rest.len())
    }
}

impl Input for Ascii<'_> {
    // Everything is there already.
    #[inline]
    fn lookahead(&mut self, _count: usize) {}

    #[inline]
    fn buflen(&self) -> usize {
        LOOK_AHEAD
    }

    #[inline]
    fn bufmaxlen(&self) -> usize {
        LOOK_AHEAD
    }

    #[inline]
    fn raw_read_ch(&mut self) -> char {
        let next = self.peek();
        self.skip();
        next
    }

    #[inline]
    fn raw_read_non_breakz_ch(&mut self) -> Option<char> {
        if self.next_is_breakz() { None } else { Some(self.raw_read_ch()) }
    }

    #[inline]
    fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    #[inline]
    fn skip_n(&mut self, count: usize) {
        self.take(count);
    }

    #[inline]
    fn peek(&self) -> char {
        self.rest.first().map_or('\0', |byte| char::from(*byte))
    }

    #[inline]
    fn peek_nth(&self, n: usize) -> char {
        self.rest.get(n).map_or('\0', |byte| char::from(*byte))
    }

    #[inline]
    fn skip_while_non_breakz(&mut self) -> usize {
        self.take(self.leading(|byte| !matches!(byte, b'\n' | b'\r' | 0))).len()
    }

    #[inline]
    fn skip_while_blank(&mut self) -> usize {
        self.take(self.leading(|byte| matches!(byte, b' ' | b'\t'))).len()
    }
}
