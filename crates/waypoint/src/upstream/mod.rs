//! The way to the backend: an endpoint, a tunnel to it under the waypoint's own identity, and HTTP inside.
//!
//! INVARIANT: [`Upstreams`] belongs to one client tunnel, so no upstream connection ever carries the requests of two
//! identities.

mod connect;
mod connections;
mod error;
mod pick;
mod send;
mod stream;
mod trail;

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

pub(crate) use self::{
    connections::Upstreams,
    error::{Broken, Error, describe},
    send::{open, send},
    stream::Stream,
    trail::Trail,
};

/// Bodies in both directions.
pub(crate) type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// HTTP version spoken to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Makes any body one of ours.
pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    body.map_err(Into::into).boxed_unsync()
}
