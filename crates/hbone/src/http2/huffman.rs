//! The Huffman code of header compression (RFC 7541, appendix B). It is canonical, so the lengths say it all.

use super::hpack::Corrupt;

/// Bits of each symbol's code; the last is the end of the string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
const MAX_BITS: usize = 30;
const END: u16 = 256;

/// The symbols ordered by length, then by value; and for each length the first code, and where its symbols begin.
struct Code {
    symbols: [u16; 257],
    first: [u32; MAX_BITS + 2],
    start: [usize; MAX_BITS + 2],
}

static CODE: Code = Code::new();

/// Decodes a whole string.
pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let mut out = Vec::with_capacity(text.len() * 8 / 5);
    let (mut code, mut length) = (0_u32, 0);
    for byte in text {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let count = CODE.start[length + 1] - CODE.start[length];
            let offset = code.wrapping_sub(CODE.first[length]) as usize;
            if offset < count {
                let symbol = CODE.symbols[CODE.start[length] + offset];
                out.push(u8::try_from(symbol).ok().filter(|_| symbol != END).ok_or(Corrupt)?);
                (code, length) = (0, 0);
            } else if length == MAX_BITS {
                return Err(Corrupt);
            }
        }
    }
    // What is left must be less than a byte of the end's code, which is all ones.
    if length >= 8 || code != (1 << length) - 1 { Err(Corrupt) } else { Ok(out) }
}

// === impl Code ===

impl Code {
    const fn new() -> Self {
        let mut code = Self { symbols: [0; 257], first: [0; MAX_BITS + 2], start: [0; MAX_BITS + 2] };
        let (mut length, mut next, mut placed) = (1, 0, 0);
        while length <= MAX_BITS {
            next <<= 1;
            code.first[length] = next;
            code.start[length] = placed;
            let mut symbol = 0;
            while symbol < 257 {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[placed] = symbol as u16;
                    placed += 1;
                    next += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        code.start[MAX_BITS + 1] = placed;
        code
    }
}
