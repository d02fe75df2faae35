//! Joins a connection's two sides until both have ended, or until a change of configuration cuts it.

use ambit_hbone::copy::{Reset, Timeouts, bidirectional_within};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::tracking::Ticket;

/// Copies both ways, for as long as the timeouts let it. Cut off, both sides see a reset, so nobody takes half an answer for a whole one.
pub(crate) async fn join<A, B>(ticket: &Ticket, timeouts: Timeouts, a: &mut A, b: &mut B)
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let finished = tokio::select! {
        biased;
        () = ticket.ended() => None,
        finished = bidirectional_within(a, b, timeouts) => Some(finished),
    };
    match finished {
        Some(Ok((sent, received))) => tracing::debug!(sent, received, "connection complete"),
        Some(Err(error)) => tracing::debug!(%error, "connection failed"),
        None => {
            a.reset();
            b.reset();
        }
    }
}
