//! HTTP/2 (RFC 9113) as far as CONNECT tunnels need it, over the records of [`tls`](crate::tls). [`frame`], [`parser`]
//! and [`hpack`] know the wire, [`state`] what the two sides have agreed on; none of them knows a socket. [`driver`] moves the
//! bytes of a connection in one task, and [`stream`] is what the tasks that use its streams hold.

mod driver;
mod events;
pub(crate) mod frame;
pub(crate) mod fuzzing;
mod head;
pub(crate) mod hpack;
mod huffman;
mod outgoing;
mod parser;
mod state;
mod stream;

pub(crate) use driver::Driver;
pub(crate) use head::{RequestHead, ResponseHead};
pub(crate) use state::{Broken, Ended, Shared};
pub(crate) use stream::{Incoming, Session, Stream};
