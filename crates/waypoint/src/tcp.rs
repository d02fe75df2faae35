//! Anything that isn't HTTP: judged by the connection's facts, then carried as bytes (`spec/waypoint.md` 5.5).

use std::{sync::Arc, time::Instant};

use ambit_hbone::copy::{self, HALF_CLOSE_IDLE_TIMEOUT, Reset};
use ambit_mesh::{View, loads::InFlight};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    detect::{Prefixed, ReadAhead},
    record::{Entry, micros_since},
    server_first::Early,
    session::{Question, Session},
    upstream::{self, Stream},
};

/// Serves one TCP tunnel until it ends or is no longer allowed, over the connection that was opened early, if any.
pub(crate) async fn serve<S>(session: Arc<Session>, mut stream: S, early: Option<Early>)
where
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let mut entry = session.entry("TCP");
    let start = Instant::now();
    let judged = session.standing().map(|standing| (standing.decide_connection(), standing.view));
    let (decision, view) = match judged {
        Ok((decision, view)) => (decision, Some(view)),
        Err(refusal) => (refusal, None),
    };
    entry.decided(&decision, Some(micros_since(start)));
    let Some(view) = view.filter(|_| decision.is_allowed()) else {
        entry.finish(None);
        return stream.reset();
    };
    let mut upstream = match reach(&session, &view, early, &mut entry).await {
        Ok(upstream) => upstream,
        Err(error) => {
            entry.failed(&error.to_string());
            entry.finish(None);
            return stream.reset();
        }
    };
    entry.finish(None);
    drop(view);
    let revoked = Arc::clone(&session).revoked(Question::Connection, "TCP");
    let ended = tokio::select! {
        copied = copy::bidirectional(&mut stream, &mut upstream.0, HALF_CLOSE_IDLE_TIMEOUT) => {
            copied.map_err(|error| error.to_string())
        }
        () = revoked => {
            stream.reset();
            upstream.0.reset();
            Err("no longer allowed".to_owned())
        }
    };
    if let Err(reason) = ended {
        tracing::debug!(service = %session.target.name, %reason, "TCP tunnel ended early");
    }
}

/// The connection opened early, unless its endpoint is no longer one, or else a new one.
async fn reach(
    session: &Session,
    view: &View,
    early: Option<Early>,
    entry: &mut Entry,
) -> Result<(Prefixed<Stream>, InFlight), upstream::Error> {
    if let Some(early) = early.filter(|early| session.is_usable(view, &early.endpoint)) {
        entry.endpoint(&early.endpoint);
        entry.connected_before(early.connect_time);
        return Ok((early.reader.into_stream(), early.in_flight));
    }
    let (endpoint, stream) = upstream::open(session, view, entry).await?;
    entry.endpoint(&endpoint);
    Ok((ReadAhead::new(stream).into_stream(), session.shared.loads.add(endpoint.load_key())))
}
