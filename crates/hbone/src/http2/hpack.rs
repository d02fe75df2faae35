//! Header compression (RFC 7541). The decoder takes everything a peer may send; the encoder adds nothing to the peer's
//! table, so it has no state.

use std::collections::VecDeque;

use bytes::Bytes;

use super::huffman;

/// The table's size that a peer may use, in the RFC's measure: we never announce another.
const MAX_TABLE_BYTES: usize = 4096;
/// What an entry counts beside its name and value.
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// A block that can't be decoded. The tables of the two sides are no longer the same, so the connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a header block can't be decompressed")]
pub(crate) struct Corrupt;

/// The decoding side of a connection.
#[derive(Default)]
pub(crate) struct Decoder {
    /// The newest first.
    table: VecDeque<(Bytes, Bytes)>,
    used: usize,
    /// As set by the peer, if it did.
    limit: Option<usize>,
}

// === impl Decoder ===

impl Decoder {
    /// Decodes a whole block and hands each field to `sink`.
    pub(crate) fn decode(&mut self, block: &[u8], mut sink: impl FnMut(&Bytes, &Bytes)) -> Result<(), Corrupt> {
        let mut block = Block(block);
        let mut fields = false;
        while let Some(&first) = block.0.first() {
            match first {
                0x80.. => {
                    let (name, value) = self.entry(block.integer(7)?)?;
                    sink(&name, &value);
                }
                0x40.. => {
                    let (name, value) = self.literal(&mut block, 6)?;
                    sink(&name, &value);
                    self.insert(name, value);
                }
                0x20.. => {
                    let limit = block.integer(5)?;
                    if limit > MAX_TABLE_BYTES || fields {
                        return Err(Corrupt);
                    }
                    self.limit = Some(limit);
                    self.evict(0);
                    continue;
                }
                _ => {
                    let (name, value) = self.literal(&mut block, 4)?;
                    sink(&name, &value);
                }
            }
            fields = true;
        }
        Ok(())
    }

    fn literal(&self, block: &mut Block<'_>, prefix_bits: u32) -> Result<(Bytes, Bytes), Corrupt> {
        let name = match block.integer(prefix_bits)? {
            0 => block.string()?,
            index => self.entry(index)?.0,
        };
        Ok((name, block.string()?))
    }

    fn entry(&self, index: usize) -> Result<(Bytes, Bytes), Corrupt> {
        let index = index.checked_sub(1).ok_or(Corrupt)?;
        if let Some(&(name, value)) = STATIC.get(index) {
            return Ok((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())));
        }
        self.table.get(index - STATIC.len()).cloned().ok_or(Corrupt)
    }

    fn insert(&mut self, name: Bytes, value: Bytes) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        self.evict(size);
        // One that is larger than the table empties it, and isn't kept.
        if size <= self.limit() {
            self.used += size;
            self.table.push_front((name, value));
        }
    }

    fn evict(&mut self, coming: usize) {
        while self.used + coming > self.limit() {
            let Some((name, value)) = self.table.pop_back() else { return };
            self.used -= name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        }
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(MAX_TABLE_BYTES)
    }

    /// For fuzzers: panics if the table is larger than it may be, or than it thinks it is.
    pub(crate) fn assert_bounded(&self) {
        let used: usize = self.table.iter().map(|(name, value)| name.len() + value.len() + ENTRY_OVERHEAD_BYTES).sum();
        assert_eq!(used, self.used, "the table's size");
        assert!(used <= self.limit() && self.limit() <= MAX_TABLE_BYTES, "{used} bytes are kept");
    }
}

/// Appends a field whose name is `name`, lower case.
pub(crate) fn encode(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    // The pseudo headers we send have names, or even values, in the table.
    match (name, value) {
        (b":status", b"200") => return out.push(0x88),
        (b":status", b"400") => return out.push(0x8c),
        (b":status", _) => out.push(8),
        (b":authority", _) => out.push(1),
        (b":method", _) => out.push(2),
        _ => {
            out.push(0);
            encode_string(name, out);
        }
    }
    encode_string(value, out);
}

fn encode_string(text: &[u8], out: &mut Vec<u8>) {
    let length = text.len();
    if length < 0x7f {
        // The cast can't truncate: it is below 127.
        out.push(length as u8);
    } else {
        out.push(0x7f);
        let mut rest = length - 0x7f;
        while rest >= 0x80 {
            out.push((rest % 0x80) as u8 | 0x80);
            rest /= 0x80;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text);
}

/// What is left of a block.
struct Block<'b>(&'b [u8]);

// === impl Block ===

impl Block<'_> {
    fn byte(&mut self) -> Result<u8, Corrupt> {
        let (&first, rest) = self.0.split_first().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(first)
    }

    fn integer(&mut self, prefix_bits: u32) -> Result<usize, Corrupt> {
        let mask = (1_usize << prefix_bits) - 1;
        let mut number = usize::from(self.byte()?) & mask;
        if number < mask {
            return Ok(number);
        }
        // More than any length or index there can be doesn't fit into four bytes of seven bits.
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(self.byte()?);
            number += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Corrupt)
    }

    fn string(&mut self) -> Result<Bytes, Corrupt> {
        let compressed = self.0.first().ok_or(Corrupt)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Corrupt)?;
        self.0 = rest;
        if compressed { huffman::decode(text).map(Bytes::from) } else { Ok(Bytes::copy_from_slice(text)) }
    }
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex")).collect()
    }

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Corrupt> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| {
            fields.push(format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        })?;
        Ok(fields)
    }

    /// RFC 7541, appendix C.4: requests with Huffman codes, and C.6, answers in a table of 256 bytes.
    #[test]
    fn the_rfcs_examples_decode() {
        let mut requests = Decoder::default();
        let first = [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"];
        assert_eq!(decoded(&mut requests, &hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")).expect("sound"), first);
        let second = decoded(&mut requests, &hex("8286 84be 5886 a8eb 1064 9cbf")).expect("sound");
        assert_eq!(second[3..], [":authority=www.example.com", "cache-control=no-cache"]);
        let third = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        assert_eq!(decoded(&mut requests, &third).expect("sound")[4], "custom-key=custom-value");

        let mut answers = Decoder::default();
        let mut first = hex("3fe1 01");
        first.extend(hex(
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
             63c7 8f0b 97c8 e9ae 82ae 43d3",
        ));
        let fields = decoded(&mut answers, &first).expect("sound");
        assert_eq!(fields[..2], [":status=302", "cache-control=private"]);
        assert_eq!(fields[3], "location=https://www.example.com");
        let second = decoded(&mut answers, &hex("4883 640e ffc1 c0bf")).expect("sound");
        assert_eq!(second[0], ":status=307", "the first entry made room");
        assert_eq!(second[3], "location=https://www.example.com");
    }

    #[test]
    fn what_is_encoded_decodes() {
        let long = vec![b'v'; 100_000];
        let mut block = Vec::new();
        for value in [&b"200"[..], b"503"] {
            encode(b":status", value, &mut block);
        }
        encode(b":authority", b"10.0.0.1:80", &mut block);
        encode(b"baggage", &long, &mut block);
        encode(b"x", &long[..127], &mut block);
        encode(b"y", &long[..128 + 127], &mut block);
        let mut lengths = Vec::new();
        Decoder::default().decode(&block, |_, value| lengths.push(value.len())).expect("sound");
        assert_eq!(lengths, [3, 3, 11, 100_000, 127, 255]);
    }

    #[test]
    fn corrupt_blocks_are_refused() {
        for block in [
            "80",         // index 0
            "be",         // an entry that isn't there
            "ff",         // an integer without its end
            "ffffffffff", // one without a bound
            "3fe2ff03",   // a larger table than allowed
            "8220",       // a change of size after a field
            "0001",       // a name that is cut off
            "00016181ff", // padding of a whole byte
            "0001618100", // padding that isn't all ones
            "00016184ffffffff",
        ] {
            assert_eq!(decoded(&mut Decoder::default(), &hex(block)), Err(Corrupt), "{block}");
        }
    }
}
