//! The pieces in which bytes come say nothing.

use super::super::{
    frame::{self, HEAD_BYTES, Violation, kind},
    parser::{Event, Parser},
};
use crate::Limits;

/// What a parser says, in terms that don't depend on where its input was cut.
#[derive(Debug, PartialEq)]
enum Said {
    Data { stream: u32, bytes: Vec<u8>, charged: u32, end: bool },
    Other(String),
}

/// Plays `bytes` to a parser at once, and to another one in pieces of the lengths `cuts`: they say the same.
///
/// # Panics
/// When they don't, or when they say more than there is to say.
pub(crate) fn pieces(server: bool, cuts: &[u8], bytes: &[u8]) {
    let (whole, verdict) = said(server, &[], bytes);
    assert_eq!(said(server, cuts, bytes), (whole, verdict), "cut into {cuts:?}");
}

fn said(server: bool, cuts: &[u8], bytes: &[u8]) -> (Vec<Said>, Result<(), Violation>) {
    let limits = Limits::default();
    let mut parser = Parser::new(server, limits.max_frame_bytes, limits.server_header_bytes as usize);
    let (mut events, mut said, mut rest) = (Vec::new(), Vec::new(), bytes);
    if server {
        parser.parse(frame::PREFACE, 0, &mut events).expect("INVARIANT: the preface is sound");
    }
    parser.parse(&frame::head(0, kind::SETTINGS, 0, 0), 0, &mut events).expect("INVARIANT: empty settings are sound");
    events.clear();
    let mut lengths = cuts.iter().cycle().map(|cut| usize::from(*cut) + 1);
    while !rest.is_empty() {
        let (part, later) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
        rest = later;
        let outcome = parser.parse(part, 0, &mut events);
        events.drain(..).for_each(|event| note(&mut said, event, part));
        let data: u32 = said.iter().map(|said| if let Said::Data { charged, .. } = said { *charged } else { 0 }).sum();
        // Padding is charged before it comes.
        assert!(data as usize <= bytes.len() + usize::from(u8::MAX) + 1, "more is charged than came");
        assert!(said.len() <= bytes.len() / HEAD_BYTES, "more is said than there are frames");
        if outcome.is_err() {
            return (said, outcome);
        }
    }
    (said, Ok(()))
}

fn note(said: &mut Vec<Said>, event: Event, part: &[u8]) {
    let Event::Data { stream, range, charged, end } = event else {
        return said.push(Said::Other(format!("{event:?}")));
    };
    let piece = &part[range];
    match said.last_mut() {
        Some(Said::Data { stream: last, bytes, charged: sum, end: over }) if *last == stream && !*over => {
            bytes.extend_from_slice(piece);
            *sum += charged;
            *over = end;
        }
        _ => said.push(Said::Data { stream, bytes: piece.to_vec(), charged, end }),
    }
}
