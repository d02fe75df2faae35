//! Anything that isn't HTTP: judged by the connection's facts, then carried as bytes (`spec/waypoint.md` 5.5).

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_hbone::copy::{self, CopyError, HALF_CLOSE_IDLE_TIMEOUT, Moved, Reset, Timeouts};
use ambit_mesh::View;
use ambit_telemetry::metrics::CarriedConnection;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    custom::{self, Approvals},
    destination::{Bounds, InFlight},
    detect::{Prefixed, ReadAhead},
    limits::{MAX_SILENCE, TCP_COUNT_PERIOD},
    operators::Ended,
    record::{Entry, micros_since},
    route,
    server_first::Early,
    session::{Question, Session},
    upstream::{self, Stream},
};

/// Serves one TCP tunnel until it ends or is no longer allowed, over the connection that was opened early, if any.
pub(crate) async fn serve<S>(session: Arc<Session>, stream: S, early: Option<Early>)
where
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    if !session.wants_server_name() {
        return judge(session, stream, early).await;
    }
    let mut ahead = ReadAhead::new(stream);
    let heard = route::heard(&mut ahead, session.shared.config.limits.detection_timeout).await;
    session.heard(heard);
    judge(session, ahead.into_stream(), early).await;
}

async fn judge<S>(session: Arc<Session>, mut stream: S, early: Option<Early>)
where
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let mut entry = session.entry("TCP");
    let start = Instant::now();
    let none = Approvals::default();
    let judged = session.standing().map(|standing| (standing.decide_connection(&none), standing));
    let (decision, standing) = match judged {
        Ok((decision, standing)) => (decision, Some(standing)),
        Err(refusal) => (refusal, None),
    };
    if decision.ask.is_some() {
        return ask_first(session, stream, early, entry).await;
    }
    entry.decided(&decision, Some(micros_since(start)));
    if let Some(standing) = &standing {
        standing.observe(None, &none, &mut entry);
    }
    match standing.filter(|_| decision.is_allowed()) {
        Some(standing) => carry(session, stream, early, entry, standing.view, none).await,
        None => {
            drop(entry.connection());
            entry.finish(None);
            stream.reset();
        }
    }
}

/// Serves one tunnel that a CUSTOM policy wants a provider asked about. Meanwhile only so much is read of it that its
/// client is noticed to go away.
async fn ask_first<S>(session: Arc<Session>, stream: S, early: Option<Early>, mut entry: Entry)
where
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let mut ahead = ReadAhead::new(stream);
    let asked = tokio::select! {
        asked = Box::pin(custom::authorize_connection(&session, &mut entry)) => asked,
        () = ahead.broken() => {
            entry.failed("the client went away before the answer");
            entry.flag("DC");
            drop(entry.connection());
            return entry.finish(None);
        }
    };
    let mut stream = ahead.into_stream();
    match asked {
        Some((standing, approvals)) => carry(session, stream, early, entry, standing.view, approvals).await,
        None => {
            entry.flag("UAEX");
            drop(entry.connection());
            entry.finish(None);
            stream.reset();
        }
    }
}

/// Carries what is allowed.
async fn carry<S>(
    session: Arc<Session>,
    stream: S,
    early: Option<Early>,
    entry: Entry,
    view: Arc<View>,
    approvals: Approvals,
) where
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    if !route::needs_server_name(&session, &view) {
        return carry_to(session, stream, (early, None), entry, view, approvals).await;
    }
    let mut ahead = ReadAhead::new(stream);
    let name = route::server_name(&mut ahead, session.shared.config.limits.detection_timeout).await;
    carry_to(session, ahead.into_stream(), (early, name), entry, view, approvals).await;
}

/// Carries it to where the routes for this server's name lead.
async fn carry_to<S>(
    session: Arc<Session>,
    mut stream: S,
    (early, server_name): (Option<Early>, Option<String>),
    mut entry: Entry,
    view: Arc<View>,
    approvals: Approvals,
) where
    S: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let mut upstream = match reach(&session, &view, early, server_name.as_deref(), &mut entry).await {
        Ok(upstream) => upstream,
        Err(error) => {
            entry.failed(&error.to_string());
            entry.flag(error.flag());
            drop(entry.connection());
            entry.finish(None);
            return stream.reset();
        }
    };
    let counted = entry.connection();
    let ended = entry.ended(None);
    entry.finish(None);
    drop(view);
    let revoked = Arc::clone(&session).revoked(Question::Connection(approvals), "TCP");
    let bounds: Bounds = upstream.1.bounds();
    let ended = tokio::select! {
        copied = counting(&mut stream, &mut upstream.0, counted, ended, bounds.idle) => {
            copied.map_err(|error| error.to_string())
        }
        () = outlasted(bounds.longest) => {
            stream.reset();
            upstream.0.reset();
            Err("it has lasted as long as its DestinationRule allows".to_owned())
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

/// Ends when a connection has lasted that long; never if it may last.
async fn outlasted(longest: Option<Duration>) {
    match longest {
        Some(longest) => tokio::time::sleep(longest).await,
        None => std::future::pending().await,
    }
}

/// Copies both ways and counts the bytes, of a long connection also while it lasts.
async fn counting<A, B>(
    client: &mut A,
    upstream: &mut B,
    counted: Option<CarriedConnection>,
    ended: Option<Box<Ended>>,
    idle: Option<Option<Duration>>,
) -> Result<(u64, u64), CopyError>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let usual = Timeouts::default().idle;
    let idle = idle.map_or(usual, |idle| idle.unwrap_or(MAX_SILENCE));
    let (moved, timeouts) = (Moved::default(), Timeouts { half_close: HALF_CLOSE_IDLE_TIMEOUT.min(idle), idle });
    // Dropped however the copy ends, or when it is cancelled.
    let mut counted = Counting { moved: &moved, counted, ended, told: (0, 0) };
    let mut copied = pin!(copy::bidirectional_counting(client, upstream, timeouts, &moved));
    loop {
        tokio::select! {
            ended = copied.as_mut() => return ended,
            () = tokio::time::sleep(TCP_COUNT_PERIOD) => counted.tell(),
        }
    }
}

/// How much of what was moved has been counted.
struct Counting<'a> {
    moved: &'a Moved,
    counted: Option<CarriedConnection>,
    ended: Option<Box<Ended>>,
    told: (u64, u64),
}

impl Counting<'_> {
    fn tell(&mut self) {
        let now = self.moved.get();
        if let Some(counted) = &self.counted {
            counted.received(now.0.saturating_sub(self.told.0));
            counted.sent(now.1.saturating_sub(self.told.1));
        }
        self.told = now;
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.tell();
        if let Some(ended) = &mut self.ended {
            ended.carried(self.told.0, self.told.1);
        }
    }
}

/// The connection opened early, unless its endpoint is no longer one, or else a new one.
async fn reach(
    session: &Session,
    view: &View,
    early: Option<Early>,
    server_name: Option<&str>,
    entry: &mut Entry,
) -> Result<(Prefixed<Stream>, InFlight), upstream::Error> {
    let way = route::way_of(session, view, server_name)?;
    if let Some(early) = early.filter(|early| session.is_usable(view, &way, &early.endpoint)) {
        entry.endpoint(&early.endpoint);
        entry.connected_before(early.connect_time);
        return Ok((early.reader.into_stream(), early.in_flight));
    }
    let (endpoint, stream, in_flight) = upstream::open(session, view, &way, entry).await?;
    entry.endpoint(&endpoint);
    Ok((ReadAhead::new(stream).into_stream(), in_flight))
}
