//! Protocols in which the server greets first (SMTP, MySQL), on ports whose protocol isn't declared.
//!
//! A client that is silent may wait for a greeting, or be a browser that has connected ahead of its request. So, where
//! the connection is allowed as TCP, an endpoint is reached before it is known what for, and whoever speaks first
//! decides. No byte moves between the two here: what comes of it is judged as always.

use std::{
    future::pending,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_mesh::View;
use tokio::io::AsyncRead;

use crate::{
    balance::Endpoint,
    custom::Approvals,
    destination::InFlight,
    detect::{Prefixed, ReadAhead, Spoken, classify_server},
    limits::SERVER_FIRST_SILENCE,
    record::Entry,
    route,
    session::{Question, Session},
    upstream::Stream,
};

/// A connection to an endpoint, opened before it was known what is spoken.
#[derive(Debug)]
pub(crate) struct Early {
    pub(crate) endpoint: Endpoint,
    /// With what the server has said already.
    pub(crate) reader: ReadAhead<Stream>,
    pub(crate) in_flight: InFlight,
    /// What reaching it took, over all tries.
    pub(crate) connect_time: Duration,
}

/// Finds out what is spoken on a client's stream: by the client's first bytes, or by the server's if they come earlier.
/// When neither says anything until the session's detection timeout, it is TCP. `early` is the connection to the
/// server that was opened for this, if it still stands.
///
/// # Errors
/// When reading from the client fails.
pub(crate) async fn detect<S>(
    session: &Session,
    stream: S,
    early: &mut Option<Early>,
) -> io::Result<(Spoken, Prefixed<S>)>
where
    S: AsyncRead + Unpin,
{
    let timeout = session.shared.config.limits.detection_timeout;
    let mut client = ReadAhead::new(stream);
    let spoken = match tokio::time::timeout(timeout, race(session, &mut client, early)).await {
        Ok(spoken) => spoken?,
        Err(_elapsed) => Spoken::Tcp,
    };
    Ok((spoken, client.into_stream()))
}

async fn race<S>(session: &Session, client: &mut ReadAhead<S>, early: &mut Option<Early>) -> io::Result<Spoken>
where
    S: AsyncRead + Unpin,
{
    if let Ok(spoken) = tokio::time::timeout(SERVER_FIRST_SILENCE, client.spoken()).await {
        return spoken;
    }
    if client.is_empty() {
        // Once the client has begun to speak, a server can no longer turn half a request into TCP.
        tokio::select! {
            biased;
            arrived = client.more() => {
                arrived?;
            }
            () = greeting(session, early) => return Ok(Spoken::Tcp),
        }
    }
    client.spoken().await
}

/// Ends when the server has spoken first. It is listened to while policies allow the connection as TCP, and cut off
/// when they stop to.
async fn greeting(session: &Session, early: &mut Option<Early>) {
    let mut changes = session.shared.store.changes();
    let question = Question::Connection(Approvals::default());
    loop {
        if let Some(view) = session.allows_connection() {
            tokio::select! {
                biased;
                _denial = session.denied(&question) => *early = None,
                () = listen(session, view, early) => return,
            }
        }
        if changes.changed().await.is_err() {
            // The configuration can't change any more.
            pending::<()>().await;
        }
    }
}

/// Reaches an endpoint and ends when it greets. Failing is no error yet: nobody has asked for this connection.
async fn listen(session: &Session, view: Arc<View>, early: &mut Option<Early>) {
    let start = Instant::now();
    let mut entry = Entry::unrecorded(session.shared.recorder.clone());
    let opened = route::open(session, &view, None, &mut entry).await;
    drop(view);
    match opened {
        Ok((endpoint, stream, in_flight)) => {
            let reader = ReadAhead::new(stream);
            let opened = early.insert(Early { endpoint, reader, in_flight, connect_time: start.elapsed() });
            match opened.reader.until_known(classify_server).await {
                Ok(Some(Spoken::Tcp)) => return,
                // The client's request is still to come.
                Ok(Some(Spoken::Http1 | Spoken::Http2)) => {}
                Ok(None) if !opened.reader.is_empty() => return,
                Ok(None) | Err(_) => *early = None,
            }
        }
        Err(error) => tracing::debug!(service = %session.target.name, %error, "no server to speak first"),
    }
    pending().await
}
