//! HTTP/1.1 connections that switch to another protocol (WebSocket), with the backend's consent.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ambit_hbone::copy::{self, HALF_CLOSE_IDLE_TIMEOUT, Reset};
use http::{HeaderValue, Response, header};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    destination::InFlight,
    operators::Tally,
    request::{self, Checked},
    respond,
    session::{Question, Session},
    upstream::Body,
};

/// Both ends of a connection about to switch.
pub(crate) struct Switch {
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: OnUpgrade,
    pub(crate) in_flight: InFlight,
    /// Counts the request when both ends are done.
    pub(crate) tally: Option<Tally>,
}

/// Joins both ends once the client has the returned 101, for as long as the request that asked for it stays allowed.
pub(crate) fn switch(
    session: &Arc<Session>,
    checked: Checked,
    switch: Switch,
    upstream: Response<Incoming>,
) -> Response<Body> {
    let protocol = upstream.headers().get(header::UPGRADE).cloned();
    let mut response = upstream.map(|_| respond::empty());
    request::strip_hop_by_hop(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    session.shared.tasks.spawn(join(Arc::clone(session), checked, switch));
    response
}

async fn join(session: Arc<Session>, checked: Checked, switch: Switch) {
    let Switch { client, upstream, in_flight, mut tally } = switch;
    let Ok((client, upstream)) = tokio::try_join!(client, upstream) else { return };
    let (mut client, mut upstream) = (Switched(TokioIo::new(client)), Switched(TokioIo::new(upstream)));
    let revoked = Arc::clone(&session).revoked(Question::Request(Box::new(checked)), "HTTP/1.1");
    tokio::select! {
        copied = copy::bidirectional(&mut client, &mut upstream, HALF_CLOSE_IDLE_TIMEOUT) => match (copied, &mut tally) {
            (Ok((received, sent)), Some(tally)) => {
                tally.received(received);
                tally.sent(sent);
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                tracing::debug!(service = %session.target.name, %error, "switched connection ended early");
            }
        },
        () = revoked => {}
    }
    drop(in_flight);
}

struct Switched(TokioIo<Upgraded>);

// === impl Switched ===

impl Reset for Switched {
    /// Nothing to do: a stream that is dropped before it was shut down is reset by the tunnel that carries it.
    fn reset(&mut self) {}
}

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
