//! Joins a connection's two sides until both have ended, or until a change of configuration cuts it.

use ambit_hbone::copy::{HALF_CLOSE_IDLE_TIMEOUT, Reset, bidirectional};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::tracking::Ticket;

/// Copies both ways. Cut off, both sides see a reset, so nobody takes half an answer for a whole one.
pub(crate) async fn join<A, B>(ticket: &Ticket, a: &mut A, b: &mut B)
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let finished = tokio::select! {
        biased;
        () = ticket.ended() => None,
        finished = bidirectional(a, b, HALF_CLOSE_IDLE_TIMEOUT) => Some(finished),
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
