//! Queries in, answers out, over UDP and TCP.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ambit_hbone::socket::fold_mapped;
use ambit_telemetry::metrics::{DnsLabels, DnsProtocol, DnsQuery, QueryType, Refusal, Reporter};
use hickory_proto::{op::Message, rr::RecordType};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    answer::{Outcome, encode_udp, failure, relayed},
    cache::{Cache, Key},
    forward::{Transport, forward, read_framed, write_framed},
    judge,
};
use crate::{
    limits::{ACCEPT_PAUSE, DNS_TCP_IDLE, MAX_DNS_QUERY_BYTES, MAX_DNS_TCP_QUERIES},
    pod::PodProxy,
};

/// The DNS of one pod.
pub(super) struct Server {
    pod: Arc<PodProxy>,
    cache: Mutex<Cache>,
}

/// What is known about a query at once.
enum Step {
    /// Nothing is said.
    Ignore,
    /// This is the answer.
    Reply(Message),
    /// Somebody has to be asked or waited for.
    Ask(Message, DnsQuery),
}

// === impl Server ===

impl Server {
    pub(super) fn new(pod: Arc<PodProxy>) -> Self {
        Self { pod, cache: Mutex::default() }
    }

    pub(super) async fn serve_udp(self: Arc<Self>, socket: &Arc<UdpSocket>) {
        // One byte more than is accepted, so a longer query is seen to be longer.
        let mut buffer = vec![0; MAX_DNS_QUERY_BYTES + 1];
        let mut closed = pin!(self.pod.handed_over(socket.as_fd()));
        loop {
            let received = tokio::select! {
                () = &mut closed => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((length, client)) if self.is_client(client) => {
                    self.datagram(socket, &buffer[..length], client).await
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(target: "dns", %error, "receiving failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    pub(super) async fn serve_tcp(self: Arc<Self>, listener: &TcpListener) {
        let mut closed = pin!(self.pod.handed_over(listener.as_fd()));
        loop {
            let accepted = tokio::select! {
                () = &mut closed => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let Some(slot) = self.is_client(client).then(|| self.slot()).flatten() else { continue };
                    let served = Arc::clone(&self);
                    self.pod.spawn(async move {
                        if let Err(error) = served.stream(stream).await {
                            tracing::debug!(target: "dns", %error, "connection failed");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::debug!(target: "dns", %error, "accepting failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>, packet: &[u8], client: SocketAddr) {
        match self.step(packet, Transport::Udp) {
            Step::Ignore => {}
            Step::Reply(reply) => {
                let payload = Message::from_vec(packet).map_or(0, |request| request.max_payload());
                send(socket, encode_udp(&reply, payload), client).await;
            }
            Step::Ask(request, query) => {
                let payload = request.max_payload();
                let Some(slot) = self.slot() else {
                    return send(socket, encode_udp(&failure(&request), payload), client).await;
                };
                let (socket, served) = (Arc::clone(socket), Arc::clone(self));
                self.pod.spawn(async move {
                    let reply = served.ask(Transport::Udp, &request, &query).await;
                    send(&socket, encode_udp(&reply, payload), client).await;
                    drop(slot);
                });
            }
        }
    }

    async fn stream(&self, mut stream: TcpStream) -> io::Result<()> {
        for _ in 0..MAX_DNS_TCP_QUERIES {
            let Some(packet) = timeout(DNS_TCP_IDLE, read_framed(&mut stream)).await?? else {
                return Ok(());
            };
            let reply = match self.step(&packet, Transport::Tcp) {
                Step::Ignore => return Ok(()),
                Step::Reply(reply) => reply,
                Step::Ask(request, query) => self.ask(Transport::Tcp, &request, &query).await,
            };
            let Ok(reply) = reply.to_vec() else { return Ok(()) };
            timeout(DNS_TCP_IDLE, write_framed(&mut stream, &reply)).await??;
        }
        Ok(())
    }

    /// Looks at a query; never waits.
    fn step(&self, packet: &[u8], transport: Transport) -> Step {
        let view = self.pod.shared.store.load();
        let outcome = judge(&self.pod, &view, packet);
        let (Outcome::Reply(message) | Outcome::Forward(message)) = &outcome else { return Step::Ignore };
        let query = self.count(message, transport);
        match outcome {
            Outcome::Ignore => Step::Ignore,
            Outcome::Reply(reply) => {
                self.log(&reply, "answered");
                Step::Reply(reply)
            }
            Outcome::Forward(request) if self.is_known() => match self.cached(&request) {
                Some(reply) => Step::Reply(reply),
                None => Step::Ask(request, query),
            },
            Outcome::Forward(request) => Step::Ask(request, query),
        }
    }

    /// Asks a resolver, once the mesh is known: before that a name of the mesh would look like one of the world's.
    async fn ask(&self, transport: Transport, request: &Message, query: &DnsQuery) -> Message {
        if !self.is_known() {
            if self.pod.workload().await.is_none() {
                return failure(request);
            }
            let packet = request.to_vec().unwrap_or_default();
            match judge(&self.pod, &self.pod.shared.store.load(), &packet) {
                Outcome::Reply(reply) => return reply,
                Outcome::Forward(_) => {}
                Outcome::Ignore => return failure(request),
            }
        }
        self.pod.shared.config.metrics.dns.cached(false);
        let started = Instant::now();
        let upstreams = &self.pod.shared.config.upstream_dns;
        let answer = forward(&*self.pod.egress, upstreams, transport, request).await;
        query.upstream(started.elapsed(), answer.is_some());
        let Some((answer, bytes)) = answer else {
            self.log(request, "no resolver answered");
            return failure(request);
        };
        if let Some(key) = Key::of(request) {
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, &answer, bytes, Instant::now());
        }
        self.log(&answer, "forwarded");
        relayed(request, &answer)
    }

    fn cached(&self, request: &Message) -> Option<Message> {
        let key = Key::of(request)?;
        let answer = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key, Instant::now())?;
        self.pod.shared.config.metrics.dns.cached(true);
        Some(relayed(request, &answer))
    }

    /// True once the control plane has said who the pod is. A pod outside the mesh needs no such word.
    fn is_known(&self) -> bool {
        !self.pod.pod.captured || self.pod.current(&self.pod.shared.store.load()).is_some()
    }

    /// Only the pod itself is served.
    pub(super) fn is_client(&self, client: SocketAddr) -> bool {
        let is_own = self.pod.is_own(fold_mapped(client).ip());
        if !is_own {
            self.refused(Refusal::DnsClient);
        }
        is_own
    }

    fn slot(&self) -> Option<crate::budget::Permit> {
        let slot = self.pod.dns_slot();
        if slot.is_none() {
            self.refused(Refusal::DnsQueries);
        }
        slot
    }

    fn refused(&self, refusal: Refusal) {
        self.pod.shared.config.metrics.refusals.refused(Reporter::Source, refusal);
    }

    fn count(&self, message: &Message, transport: Transport) -> DnsQuery {
        let view = self.pod.shared.store.load();
        let canonical = self.pod.current(&view).map(|workload| &workload.canonical);
        let labels = DnsLabels {
            query_type: message.queries.first().map_or(QueryType::Other, |query| query_type(query.query_type())),
            protocol: match transport {
                Transport::Udp => DnsProtocol::Udp,
                Transport::Tcp => DnsProtocol::Tcp,
            },
            source_canonical_service: canonical.map(|canonical| Arc::clone(&canonical.name)),
            source_canonical_revision: canonical.map(|canonical| Arc::clone(&canonical.revision)),
        };
        self.pod.shared.config.metrics.dns.request(&labels)
    }

    fn log(&self, message: &Message, result: &'static str) {
        let Some(query) = message.queries.first() else { return };
        let (uid, namespace) = (&self.pod.pod.uid, &self.pod.pod.namespace);
        let (kind, domain) = (query.query_type(), query.name());
        let (code, endpoints) = (message.metadata.response_code, message.answers.len());
        tracing::debug!(
            target: "dns",
            { src.workload = %uid, src.namespace = %namespace, query = %kind, %domain, result, %code, endpoints },
            "query"
        );
    }
}

async fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, client: SocketAddr) {
    if let Some(reply) = reply
        && let Err(error) = socket.send_to(&reply, client).await
    {
        tracing::debug!(target: "dns", %error, "answering failed");
    }
}

fn query_type(kind: RecordType) -> QueryType {
    match kind {
        RecordType::A => QueryType::A,
        RecordType::AAAA => QueryType::Aaaa,
        RecordType::CNAME => QueryType::Cname,
        RecordType::MX => QueryType::Mx,
        RecordType::NS => QueryType::Ns,
        RecordType::PTR => QueryType::Ptr,
        RecordType::SOA => QueryType::Soa,
        RecordType::SRV => QueryType::Srv,
        RecordType::TXT => QueryType::Txt,
        RecordType::HTTPS | RecordType::SVCB => QueryType::Https,
        _ => QueryType::Other,
    }
}
