//! Anything that isn't HTTP: judged by the connection's facts, then carried as bytes (`spec/waypoint.md` 5.5).

use std::{sync::Arc, time::Instant};

use ambit_hbone::copy::{self, HALF_CLOSE_IDLE_TIMEOUT, Reset};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    record::micros_since,
    session::{Question, Session},
    upstream,
};

/// Serves one TCP tunnel until it ends or is no longer allowed.
pub(crate) async fn serve<S>(session: Arc<Session>, mut stream: S)
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
    let mut upstream = match upstream::open(&session, &view, &mut entry).await {
        Ok((endpoint, upstream)) => {
            entry.endpoint(&endpoint);
            entry.finish(None);
            (upstream, session.shared.loads.add(&endpoint))
        }
        Err(error) => {
            entry.failed(&error.to_string());
            entry.finish(None);
            return stream.reset();
        }
    };
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
