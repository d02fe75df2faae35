//! Which rules a connection or request could match at all.
//!
//! Each rule is filed under values that what it matches must have: those of the part of it that is the most telling,
//! which is the one whose values the fewest rules share. A look-up then finds the few rules that are worth judging,
//! however many there are. A rule without such values is always judged.

mod address;
mod choice;
mod hash;
mod key;
mod lookup;
mod text;

pub(crate) use choice::{file, file_for_connections};
pub(crate) use lookup::{ConnectionIndex, RequestIndex, indexes};
