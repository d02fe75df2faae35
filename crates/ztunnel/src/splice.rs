//! Joins a connection's two sides until both have ended, or until a change of configuration cuts it.

use ambit_hbone::copy::{Reset, bidirectional_counting};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    account::{End, Verdicted},
    budget::Metered,
    pod::PodProxy,
    tracking::Ticket,
};

/// Copies both ways between the client and the server, for as long as the timeouts let it, and as the pod's memory does. Cut off, both sides see a reset,
/// so nobody takes half an answer for a whole one.
pub(crate) async fn join<C, S>(ticket: &Ticket, pod: &PodProxy, client: &mut C, server: &mut S)
where
    C: AsyncRead + AsyncWrite + Reset + Unpin,
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let (timeouts, memory) = (pod.shared.config.idle, pod.budget.memory());
    let (mut client, mut server) = (Metered::new(client, memory), Metered::new(server, memory));
    let finished = tokio::select! {
        biased;
        () = ticket.ended() => None,
        finished = bidirectional_counting(&mut client, &mut server, timeouts, ticket.moved()) => Some(finished),
    };
    ticket.close(match finished {
        Some(finished) => finished.into(),
        None => {
            client.reset();
            server.reset();
            ticket.ending().cloned().map_or(End::Drained, |verdict: Verdicted| End::Refused(verdict))
        }
    });
}
