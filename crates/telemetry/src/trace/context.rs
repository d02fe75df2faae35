//! W3C trace context (`traceparent`): <https://www.w3.org/TR/trace-context/>.

use std::fmt;

/// A trace, and the span in it that whoever reads this belongs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not all zero.
    pub trace_id: [u8; 16],
    /// The span; not all zero.
    pub span_id: [u8; 8],
    /// Its spans are wanted.
    pub sampled: bool,
}

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

// === impl TraceContext ===

impl TraceContext {
    /// Reads the value of a `traceparent`. One of a later version is read as far as this version goes, as the
    /// recommendation wants it.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let [version] = hex(value.get(..2)?)?;
        let has_dashes = [2, 35, 52].iter().all(|place| value.get(*place) == Some(&b'-'));
        let ends = match version {
            0 => value.len() == LENGTH,
            0xff => false,
            _ => value.len() == LENGTH || value.get(LENGTH) == Some(&b'-'),
        };
        if !has_dashes || !ends {
            return None;
        }
        let (trace_id, span_id) = (hex(value.get(3..35)?)?, hex(value.get(36..52)?)?);
        let [flags] = hex(value.get(53..LENGTH)?)?;
        let is_usable = trace_id != [0; 16] && span_id != [0; 8];
        is_usable.then_some(Self { trace_id, span_id, sampled: flags & SAMPLED != 0 })
    }
}

/// Exactly so many bytes of lower-case hexadecimal digits.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", if self.sampled { SAMPLED } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::TraceContext;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_written_reads_as_it_was() {
        let context = TraceContext::parse(GOOD.as_bytes()).expect("the recommendation's own example");
        assert_eq!((context.to_string().as_str(), context.sampled, context.trace_id[0]), (GOOD, true, 0x0a));
        let unsampled = TraceContext { sampled: false, ..context };
        assert!(unsampled.to_string().ends_with("-00"));
        // Flags that aren't known are no reason to refuse, and aren't passed on.
        assert_eq!(TraceContext::parse(&GOOD.replace("-01", "-ff").into_bytes()).expect("readable"), context);
    }

    #[test]
    fn what_the_recommendation_calls_invalid_is_not_believed() {
        let bad = [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replace("00-0af", "ff-0af"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            format!("{GOOD}-00"),
            format!("{GOOD} "),
            GOOD[..54].to_owned(),
            GOOD.replace("0af7", "0ag7"),
            GOOD.replace("00-0af", "01-0af") + "x",
        ];
        for text in bad {
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
        }
        let later = GOOD.replace("00-0af", "cc-0af");
        assert!(TraceContext::parse(later.as_bytes()).is_some());
        assert!(TraceContext::parse(format!("{later}-what-may-come").as_bytes()).is_some());
    }
}
