//! The HTTP servers inside of a tunnel, from their first byte to their last: also when the waypoint drains, and when the
//! client has nothing more to say.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task::yield_now,
};

use crate::{
    http::{HTTP1, answer},
    limits::{
        HALF_CLOSED_SILENCE, HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, HTTP2_SEND_BUFFER_BYTES,
        HTTP2_STREAM_WINDOW_BYTES, MAX_HEADER_BYTES, MAX_HTTP1_BUFFER_BYTES, MAX_HTTP2_ERROR_RESETS,
        MAX_HTTP2_PENDING_RESETS, MAX_HTTP2_STREAMS,
    },
    outgoing::Outgoing,
    record::refusal,
    refusals::Refusal,
    session::Session,
    shared::Shared,
    strict::{self, Strict},
    websocket::Bridge,
};

/// Serves HTTP/1.1 until the client or a drain ends it.
pub(crate) async fn serve_http1<S>(session: Arc<Session>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ours = Arc::clone(&session);
    let stream = Strict::new(stream, Arc::clone(&session.shared));
    let (told, state) = (stream.state(), stream.state());
    let service = service_fn(move |request: Request<Incoming>| {
        let may_switch = request.headers().contains_key(header::UPGRADE);
        let state = Arc::clone(&told);
        // Boxed here, or each of those that hand it on would copy its kilobytes.
        let answer = Box::pin(answer(Arc::clone(&session), request));
        async move {
            let mut answer = answer.await;
            if let Ok(response) = &mut answer {
                let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if !switches && state.is_draining() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                if may_switch {
                    state.answered(switches);
                }
            }
            state.count_answer();
            answer
        }
    });
    let connection = conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ours.shared.config.limits.idle_timeout)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_HTTP1_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = no_more(&ours.shared, &state) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = gone(&state) => return,
            }
        }
    };
    if let Err(error) = ended {
        unreadable(&ours, &state, &error);
    }
}

/// Serves HTTP/2 with prior knowledge until the client or a drain ends it.
pub(crate) async fn serve_http2<S>(session: Arc<Session>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ours = Arc::clone(&session);
    let begun = Arc::new(Begun::default());
    let stream = Outgoing::new(stream, Arc::clone(&session.shared));
    let first = Arc::clone(&begun);
    let mut gathering = Gathering::default();
    let unanswered = Arc::clone(&gathering.unanswered);
    let service = service_fn(move |mut request: Request<Incoming>| {
        first.set();
        let counted = Counted::new(&unanswered);
        let bridge = Bridge::of(&mut request, &session);
        let answer = Box::pin(answer(Arc::clone(&session), request));
        async move {
            let answer = answer.await;
            drop(counted);
            match bridge {
                None => answer,
                Some(bridge) => answer.map(|response| bridge.answer(response)),
            }
        }
    });
    let connection = conn::http2::Builder::new(ours.shared.tasks.clone())
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_ERROR_RESETS)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Told to end during the handshake, the server would do so without looking at the requests that came along with it.
    let drained = async {
        ours.shared.drain.cancelled().await;
        tokio::select! {
            () = begun.wait() => {}
            () = ours.shared.close_idle.cancelled() => {}
        }
    };
    let ended = tokio::select! {
        ended = poll_fn(|cx| gathering.poll(cx, connection.as_mut())) => ended,
        () = drained => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(service = %ours.target.name, %error, "HTTP/2 connection ended early");
    }
}

/// Whether a connection has had a request.
#[derive(Debug, Default)]
struct Begun {
    first: AtomicBool,
    notify: Notify,
}

/// Lets the answers of a connection gather before it writes: each of them wakes it, and if it wrote at once, each would cost a
/// system call and wake the client on its own.
#[derive(Debug, Default)]
struct Gathering {
    unanswered: Arc<AtomicUsize>,
    yielded: bool,
}

/// A request without an answer yet.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

/// Ends when the connection is to end with the answer that is on its way, or now if there is none. A drain alone doesn't: a
/// client that is told with its next answer loses no request to a connection that closes under it.
async fn no_more(shared: &Shared, state: &strict::State) {
    let drained = async {
        shared.drain.cancelled().await;
        state.drain();
        shared.close_idle.cancelled().await;
    };
    tokio::select! {
        () = drained => {}
        () = state.all_answered() => {}
    }
}

/// Ends when a client that has ended its side takes nothing for long, and is taken to be gone.
async fn gone(state: &strict::State) {
    if !state.is_ended() {
        return std::future::pending().await;
    }
    let mut before = state.written();
    loop {
        tokio::time::sleep(HALF_CLOSED_SILENCE).await;
        let now = state.written();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Records a request that the server couldn't read.
fn unreadable(session: &Arc<Session>, state: &strict::State, error: &hyper::Error) {
    if error.is_parse() {
        let mut entry = session.entry(HTTP1);
        let (status, own) =
            if error.is_parse_too_large() { (431, Refusal::LargeHead) } else { (400, Refusal::MalformedHead) };
        let reason = match state.refusal() {
            Some(refusal) => refusal.reason().to_owned(),
            None => {
                session.shared.refusals.add(own);
                format!("the request can't be read: {error}")
            }
        };
        entry.decided(&refusal(&reason), None);
        entry.flag("DPE");
        entry.finish(Some(status));
    }
    tracing::debug!(service = %session.target.name, %error, "HTTP/1.1 connection ended early");
}

// === impl Gathering ===

impl Gathering {
    /// Polls the connection; while several requests wait for their answers, only after everything else that is ready.
    fn poll<C: Future>(&mut self, cx: &mut Context<'_>, connection: Pin<&mut C>) -> Poll<C::Output> {
        self.yielded = !self.yielded && self.unanswered.load(Ordering::Relaxed) > 1;
        if self.yielded {
            // Polled once, it has us woken when the worker's other tasks have had their turn.
            let _ = pin!(yield_now()).poll(cx);
            return Poll::Pending;
        }
        connection.poll(cx)
    }
}

// === impl Counted ===

impl Counted {
    fn new(unanswered: &Arc<AtomicUsize>) -> Self {
        unanswered.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(unanswered))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Begun ===

impl Begun {
    fn set(&self) {
        if !self.first.load(Ordering::Relaxed) {
            self.first.store(true, Ordering::Release);
            self.notify.notify_one();
        }
    }

    async fn wait(&self) {
        while !self.first.load(Ordering::Acquire) {
            self.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test]
    async fn a_connection_waits_for_others_once_and_only_while_several_are_unanswered() {
        let mut gathering = Gathering::default();
        let mut polls = 0;
        let mut connection = pin!(poll_fn(|_| {
            polls += 1;
            Poll::<()>::Pending
        }));
        let cx = &mut Context::from_waker(Waker::noop());
        let one = Counted::new(&gathering.unanswered);
        assert!(gathering.poll(cx, connection.as_mut()).is_pending());
        let two = Counted::new(&gathering.unanswered);
        assert!(gathering.poll(cx, connection.as_mut()).is_pending());
        assert!(gathering.poll(cx, connection.as_mut()).is_pending());
        drop((one, two));
        assert!(gathering.poll(cx, connection.as_mut()).is_pending());
        assert_eq!(polls, 3, "of four, the second gave way");
    }

    #[tokio::test]
    async fn who_gave_way_is_woken() {
        let mut gathering = Gathering::default();
        let _unanswered = [Counted::new(&gathering.unanswered), Counted::new(&gathering.unanswered)];
        let mut connection = pin!(async { 1 });
        assert_eq!(poll_fn(|cx| gathering.poll(cx, connection.as_mut())).await, 1);
    }
}
