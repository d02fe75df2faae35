//! One provider: how much it is asked at once, and the connections to it.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::http::{Request, Response, StatusCode};
use ambit_mesh::{View, view::Authorizer};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::reach::{self, Place};
use crate::{
    limits::{
        CHECK_KEEPALIVE_INTERVAL, CHECK_KEEPALIVE_TIMEOUT, CHECKED_BODY_ROOM_BYTES, MAX_CHECK_ANSWER_BYTES, MAX_CHECKS,
        MAX_HEADER_BYTES, MAX_HTTP1_BUFFER_BYTES, MAX_IDLE_CHECK_CONNECTIONS, MAX_KNOWN_PROVIDERS,
    },
    shared::Shared,
    upstream::{Protocol, Stream, describe},
};

/// The providers that have been asked, by name.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<Arc<str>, Arc<Client>>>);

/// One provider.
#[derive(Debug)]
pub(super) struct Client {
    authorizer: Arc<Authorizer>,
    questions: Semaphore,
    /// For bodies, in KiB.
    room: Arc<Semaphore>,
    connections: Mutex<Connections>,
    /// Held by whoever connects, so that a burst of first questions opens one connection and not many.
    connecting: tokio::sync::Mutex<()>,
}

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Unknown(String),
    #[error("{MAX_CHECKS} questions are waiting for it already")]
    Busy,
    #[error("no more bodies can be held for it at once")]
    NoRoom,
    #[error("the request's body is larger than the {max_bytes} bytes that it may be sent")]
    BodyTooLarge { max_bytes: usize },
    #[error("the request's body didn't come in time")]
    BodyTooSlow,
    #[error("the request's body can't be read: {0}")]
    Body(String),
    #[error("it can't be reached: {0}")]
    Reach(String),
    #[error("{0}")]
    Exchange(String),
    #[error("nothing came within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("its answer can't be obeyed: {0}")]
    Unusable(String),
}

#[derive(Debug, Default)]
struct Connections {
    http2: Option<Http2>,
    http1: Vec<Http1>,
}

#[derive(Debug)]
struct Http1 {
    place: Place,
    sender: http1::SendRequest<Full<Bytes>>,
}

#[derive(Clone, Debug)]
struct Http2 {
    place: Place,
    sender: http2::SendRequest<Full<Bytes>>,
}

enum Connection {
    Http1(Http1),
    Http2(Http2),
}

/// Bytes of room per permit.
const ROOM_UNIT_BYTES: usize = 1024;

// === impl Clients ===

impl Clients {
    /// The client for this provider. One whose settings have changed begins anew; what is asked of the old one ends there.
    pub(super) fn of(&self, authorizer: &Arc<Authorizer>) -> Arc<Client> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(&authorizer.name) {
            Some(known) if Arc::ptr_eq(&known.authorizer, authorizer) || known.authorizer == *authorizer => {
                Arc::clone(known)
            }
            _ => {
                // Those that nobody asks at this moment lose nothing but a connection.
                if clients.len() >= MAX_KNOWN_PROVIDERS {
                    clients.retain(|_, known| Arc::strong_count(known) > 1);
                }
                let client = Arc::new(Client::new(Arc::clone(authorizer)));
                clients.insert(Arc::clone(&authorizer.name), Arc::clone(&client));
                client
            }
        }
    }
}

// === impl Client ===

impl Client {
    fn new(authorizer: Arc<Authorizer>) -> Self {
        Self {
            authorizer,
            questions: Semaphore::new(MAX_CHECKS),
            room: Arc::new(Semaphore::new(CHECKED_BODY_ROOM_BYTES / ROOM_UNIT_BYTES)),
            connections: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// A place among the questions that are asked at once.
    pub(super) fn slot(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.questions.try_acquire().map_err(|_full| Failure::Busy)
    }

    /// Room for a body of so many bytes.
    pub(super) fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).map_err(|_| Failure::NoRoom)?;
        Arc::clone(&self.room).try_acquire_many_owned(units).map_err(|_full| Failure::NoRoom)
    }

    /// Gives up when the provider's time is over.
    pub(super) async fn within_time<T>(&self, asking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let timeout = self.authorizer.timeout;
        tokio::time::timeout(timeout, asking).await.unwrap_or(Err(Failure::Timeout(timeout)))
    }

    /// Sends a question and reads the whole answer, its trailers after its body. A connection that has been idle may turn
    /// out to be closed: then it is asked once more over a new one.
    pub(super) async fn send(
        &self,
        shared: &Shared,
        view: &View,
        protocol: Protocol,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<()>, Bytes, ::http::HeaderMap), Failure> {
        let mut may_reuse = true;
        loop {
            let (mut connection, is_reused) = self.connection(shared, view, protocol, may_reuse).await?;
            let _in_flight = connection.place().endpoint().map(|endpoint| shared.loads.add(endpoint.load_key()));
            let failure = match connection.send(request.clone()).await {
                Ok(response) => {
                    let whole = read(response).await?;
                    self.put_back(connection);
                    return Ok(whole);
                }
                Err(error) => describe(&error),
            };
            self.forget(&connection);
            if !is_reused {
                return Err(Failure::Exchange(format!("it gave no answer: {failure}")));
            }
            may_reuse = false;
        }
    }

    /// A connection to ask by, and whether it has been used before.
    async fn connection(
        &self,
        shared: &Shared,
        view: &View,
        protocol: Protocol,
        may_reuse: bool,
    ) -> Result<(Connection, bool), Failure> {
        if may_reuse && let Some(known) = self.known(shared, view, protocol) {
            return Ok((known, true));
        }
        let _alone = match protocol {
            Protocol::Http2 => Some(self.connecting.lock().await),
            Protocol::Http1 => None,
        };
        // Somebody else may have connected meanwhile.
        if protocol == Protocol::Http2
            && let Some(known) = self.known(shared, view, protocol)
        {
            return Ok((known, true));
        }
        let (place, stream) = reach::connect(shared, view, &self.authorizer).await.map_err(Failure::Reach)?;
        let connection = handshake(shared, place, stream, protocol).await?;
        if let Connection::Http2(open) = &connection {
            self.lock().http2 = Some(open.clone());
        }
        Ok((connection, false))
    }

    /// A connection that is open and still leads to the provider.
    fn known(&self, shared: &Shared, view: &View, protocol: Protocol) -> Option<Connection> {
        let mut connections = self.lock();
        let usable = |place: &Place| place.is_usable(shared, view, &self.authorizer);
        match protocol {
            Protocol::Http2 => {
                let open = connections.http2.as_ref();
                if open.is_some_and(|open| open.sender.is_closed() || !usable(&open.place)) {
                    connections.http2 = None;
                }
                connections.http2.clone().map(Connection::Http2)
            }
            Protocol::Http1 => {
                connections.http1.retain(|open| open.sender.is_ready() && usable(&open.place));
                connections.http1.pop().map(Connection::Http1)
            }
        }
    }

    fn put_back(&self, connection: Connection) {
        if let Connection::Http1(open) = connection {
            let mut connections = self.lock();
            if connections.http1.len() < MAX_IDLE_CHECK_CONNECTIONS && !open.sender.is_closed() {
                connections.http1.push(open);
            }
        }
    }

    /// The connection has failed.
    fn forget(&self, connection: &Connection) {
        if let Connection::Http2(failed) = connection
            && failed.sender.is_closed()
        {
            let mut connections = self.lock();
            if connections.http2.as_ref().is_some_and(|open| open.sender.is_closed()) {
                connections.http2 = None;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn handshake(shared: &Shared, place: Place, stream: Stream, protocol: Protocol) -> Result<Connection, Failure> {
    let failed = |error: hyper::Error| Failure::Exchange(format!("it can't be spoken to: {}", describe(&error)));
    let tasks = &shared.tasks;
    match protocol {
        Protocol::Http1 => {
            let handshake = http1::Builder::new().max_buf_size(MAX_HTTP1_BUFFER_BYTES).handshake(TokioIo::new(stream));
            let (sender, connection) = handshake.await.map_err(failed)?;
            tasks.spawn(async move {
                // Its error is also the question's.
                let _ = connection.await;
            });
            Ok(Connection::Http1(Http1 { place, sender }))
        }
        Protocol::Http2 => {
            let handshake = http2::Builder::new(tasks.clone())
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEADER_BYTES as u32)
                .keep_alive_interval(CHECK_KEEPALIVE_INTERVAL)
                .keep_alive_timeout(CHECK_KEEPALIVE_TIMEOUT)
                .handshake(TokioIo::new(stream));
            let (sender, connection) = handshake.await.map_err(failed)?;
            tasks.spawn(async move {
                let _ = connection.await;
            });
            Ok(Connection::Http2(Http2 { place, sender }))
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<(Response<()>, Bytes, ::http::HeaderMap), Failure> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_CHECK_ANSWER_BYTES).collect().await.map_err(|error| {
        let large = error.is::<http_body_util::LengthLimitError>();
        let why = if large { format!("it has more than {MAX_CHECK_ANSWER_BYTES} bytes") } else { error.to_string() };
        Failure::Exchange(format!("its answer can't be read: {why}"))
    })?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((Response::from_parts(head, ()), body.to_bytes(), trailers))
}

// === impl Connection ===

impl Connection {
    fn place(&self) -> &Place {
        match self {
            Self::Http1(open) => &open.place,
            Self::Http2(open) => &open.place,
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(open) => {
                open.sender.ready().await?;
                open.sender.send_request(request).await
            }
            Self::Http2(open) => open.sender.send_request(request).await,
        }
    }
}

// === impl Failure ===

impl Failure {
    /// `failOpen` covers it: the provider's or the network's fault. It doesn't cover what clients can bring about, nor an
    /// answer that would have changed the request.
    pub(super) fn may_be_ignored(&self) -> bool {
        matches!(self, Self::Reach(_) | Self::Exchange(_) | Self::Timeout(_))
    }

    /// Status for the client, if it isn't the provider's `statusOnError`.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::BodyTooLarge { .. } => Some(StatusCode::PAYLOAD_TOO_LARGE),
            Self::BodyTooSlow => Some(StatusCode::REQUEST_TIMEOUT),
            Self::Body(_) => Some(StatusCode::BAD_REQUEST),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_mesh::view::Ask;

    use super::*;

    fn authorizer(host: &str) -> Arc<Authorizer> {
        Arc::new(Authorizer {
            name: "ext".into(),
            namespace: None,
            host: host.into(),
            port: 1,
            mesh_only: false,
            timeout: Duration::from_secs(1),
            fail_open: false,
            status_on_error: 403,
            body: None,
            ask: Ask::Grpc,
        })
    }

    #[test]
    fn past_the_bounds_nothing_is_asked() {
        let client = Client::new(authorizer("x"));
        let slots: Vec<_> = (0..MAX_CHECKS).map(|_| client.slot().expect("within the bound")).collect();
        let busy = client.slot().expect_err("past it");
        assert_eq!(busy.to_string(), "1024 questions are waiting for it already");
        assert!(!busy.may_be_ignored(), "clients can bring this about");
        drop(slots);
        assert!(client.slot().is_ok());

        let body = 1024 * 1024;
        let rooms: Vec<_> =
            (0..CHECKED_BODY_ROOM_BYTES / body).map(|_| client.room(body).expect("within the bound")).collect();
        assert!(!client.room(1).expect_err("past it").may_be_ignored());
        drop(rooms);
        assert!(client.room(1).is_ok());
    }

    #[test]
    fn settings_that_change_begin_anew() {
        let clients = Clients::default();
        let first = clients.of(&authorizer("x"));
        assert!(Arc::ptr_eq(&first, &clients.of(&authorizer("x"))), "the same settings, received again");
        assert!(!Arc::ptr_eq(&first, &clients.of(&authorizer("y"))));
    }

    #[test]
    fn what_a_client_can_bring_about_has_a_status_of_its_own_and_is_never_ignored() {
        for (failure, status, may_be_ignored) in [
            (Failure::BodyTooLarge { max_bytes: 1 }, Some(413), false),
            (Failure::BodyTooSlow, Some(408), false),
            (Failure::Body("reset".into()), Some(400), false),
            (Failure::Busy, None, false),
            (Failure::NoRoom, None, false),
            (Failure::Unknown("no settings".into()), None, false),
            (Failure::Unusable("empty".into()), None, false),
            (Failure::Reach("refused".into()), None, true),
            (Failure::Exchange("reset".into()), None, true),
            (Failure::Timeout(Duration::from_secs(1)), None, true),
        ] {
            let seen = (failure.status().map(|status| status.as_u16()), failure.may_be_ignored());
            assert_eq!(seen, (status, may_be_ignored), "{failure}");
        }
    }
}
