//! YAML with positions: text to a tree of nodes ([`parse`]), a tree to a typed object ([`deserialize`]).

mod deserialize;
mod node;
mod parse;
mod scalar;

pub(crate) use deserialize::{Failure, Typed, Unknown, deserialize};
pub(crate) use node::{Entry, Node, Value};
pub(crate) use parse::parse;
