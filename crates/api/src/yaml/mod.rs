//! YAML with positions: text to a tree of nodes ([`parse`]), a tree to a typed object ([`deserialize`]); and JSON values to YAML
//! ([`write`]).

mod ascii;
mod deserialize;
mod node;
mod parse;
mod parts;
mod scalar;
mod write;

pub(crate) use deserialize::{Failure, Typed, Unknown, deserialize, deserialize_strictly};
pub(crate) use node::{Entry, Node, Value};
pub(crate) use parse::{Dialect, Part, parse, parse_dialect, parse_part};
pub(crate) use parts::parts;
pub use write::render;
