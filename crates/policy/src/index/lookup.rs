//! Looking rules up.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    address::AddressIndex,
    choice::Filed,
    hash::Table,
    key::Key,
    text::{Form, Ids, TextIndex},
};
use crate::{
    facts::{ConnectionFacts, Peer},
    rule::Request,
    test::trust_domain,
    token::{ClaimPath, issuer_and_subject},
};

/// Rules by what a connection has.
#[derive(Debug, Default)]
pub(crate) struct ConnectionIndex {
    always: Ids,
    principal: TextIndex,
    namespace: TextIndex,
    account: TextIndex,
    trust_domain: TextIndex,
    source_ip: AddressIndex,
    remote_ip: AddressIndex,
    destination_ip: AddressIndex,
    port: Table<u16, Ids>,
}

/// Rules by what a request has.
#[derive(Debug, Default)]
pub(crate) struct RequestIndex {
    path: TextIndex,
    host: TextIndex,
    method: TextIndex,
    headers: Box<[(Box<str>, TextIndex)]>,
    claims: Box<[(ClaimPath, TextIndex)]>,
    subject: TextIndex,
}

/// The parts that indexes are made of, by attribute.
#[derive(Default)]
struct Parts {
    principal: Texts,
    namespace: Texts,
    account: Texts,
    trust_domain: Texts,
    source_ip: Vec<(IpNet, Vec<u32>)>,
    remote_ip: Vec<(IpNet, Vec<u32>)>,
    destination_ip: Vec<(IpNet, Vec<u32>)>,
    port: Table<u16, Ids>,
    path: Texts,
    host: Texts,
    method: Texts,
    headers: Table<Box<str>, Texts>,
    claims: Table<ClaimPath, Texts>,
    subject: Texts,
}

type Texts = Vec<(Form, Box<str>, Vec<u32>)>;

/// Makes the look-ups of filed rules.
pub(crate) fn indexes(filed: Filed<'_>) -> (ConnectionIndex, RequestIndex) {
    let mut parts = Parts::default();
    for (key, ids) in filed.by_key {
        match key {
            Key::Principal(form, text) => parts.principal.push((form, text.into(), ids)),
            Key::Namespace(form, text) => parts.namespace.push((form, text.into(), ids)),
            Key::Account(text) => parts.account.push((Form::Exact, text.into(), ids)),
            Key::TrustDomain(form, text) => parts.trust_domain.push((form, text.into(), ids)),
            Key::SourceIp(net) => parts.source_ip.push((net, ids)),
            Key::RemoteIp(net) => parts.remote_ip.push((net, ids)),
            Key::DestinationIp(net) => parts.destination_ip.push((net, ids)),
            Key::DestinationPort(port) => drop(parts.port.insert(port, ids.into())),
            Key::Path(form, text) => parts.path.push((form, text.into(), ids)),
            Key::Host(form, text) => parts.host.push((form, text.into(), ids)),
            Key::Method(text) => parts.method.push((Form::Exact, text.into(), ids)),
            Key::Header(name, text) => {
                parts.headers.entry(name.into()).or_default().push((Form::Exact, text.into(), ids));
            }
            Key::Claim(path, text) => {
                parts.claims.entry(path.clone()).or_default().push((Form::Exact, text.into(), ids));
            }
            Key::Subject(text) => parts.subject.push((Form::Exact, text.into(), ids)),
        }
    }
    let connection = ConnectionIndex {
        always: filed.always.into(),
        principal: TextIndex::new(parts.principal),
        namespace: TextIndex::new(parts.namespace),
        account: TextIndex::new(parts.account),
        trust_domain: TextIndex::new(parts.trust_domain),
        source_ip: AddressIndex::new(parts.source_ip),
        remote_ip: AddressIndex::new(parts.remote_ip),
        destination_ip: AddressIndex::new(parts.destination_ip),
        port: parts.port,
    };
    let request = RequestIndex {
        path: TextIndex::new(parts.path),
        host: TextIndex::new(parts.host),
        method: TextIndex::new(parts.method),
        headers: parts.headers.into_iter().map(|(name, texts)| (name, TextIndex::new(texts))).collect(),
        claims: parts.claims.into_iter().map(|(path, texts)| (path, TextIndex::new(texts))).collect(),
        subject: TextIndex::new(parts.subject),
    };
    (connection, request)
}

// === impl ConnectionIndex ===

impl ConnectionIndex {
    /// The rules that the connection could match. A rule may come more than once.
    pub(crate) fn visit(&self, connection: &ConnectionFacts, each: &mut dyn FnMut(&[u32])) {
        each(&self.always);
        if let Some(peer) = &connection.peer {
            self.visit_peer(peer, each);
        }
        let addresses: [(&AddressIndex, IpAddr); 3] = [
            (&self.source_ip, connection.source_ip),
            (&self.remote_ip, connection.remote_ip()),
            (&self.destination_ip, connection.destination_ip),
        ];
        addresses.into_iter().for_each(|(index, address)| index.visit(address, each));
        if let Some(ids) = self.port.get(&connection.destination_port) {
            each(ids);
        }
    }

    fn visit_peer(&self, peer: &Peer, each: &mut dyn FnMut(&[u32])) {
        self.principal.visit(peer.principal(), each);
        if let Some(domain) = trust_domain(peer) {
            self.trust_domain.visit(domain, each);
        }
        if self.namespace.is_empty() && self.account.is_empty() {
            return;
        }
        // A loose match of what denies can read several namespaces and accounts out of a name that isn't a workload's,
        // or whose namespace is `ns`.
        match peer.id().filter(|id| id.namespace() != "ns") {
            Some(id) => {
                self.namespace.visit(id.namespace(), each);
                let account = id.namespace().len() + "/sa/".len() + id.service_account().len();
                self.account.visit(&peer.principal()[peer.principal().len() - account..], each);
            }
            None => {
                self.namespace.visit_all(each);
                self.account.visit_all(each);
            }
        }
    }
}

// === impl RequestIndex ===

impl RequestIndex {
    /// The rules that the request could match. A rule may come more than once.
    pub(crate) fn visit(&self, request: &Request<'_>, each: &mut dyn FnMut(&[u32])) {
        if !self.path.is_empty() {
            self.path.visit_bytes(request.path, each);
        }
        if !self.method.is_empty() {
            self.method.visit(request.method, each);
        }
        if !self.host.is_empty() {
            self.visit_host(request.host, each);
        }
        for (name, values) in &self.headers {
            let mut lines = 0;
            request.lines(name, &mut |line| {
                lines += 1;
                values.visit_bytes(line, each);
            });
            if lines > 1 {
                // They may also match as one.
                values.visit_all(each);
            }
        }
        let Some(claims) = request.claims else { return };
        for (path, values) in &self.claims {
            path.any(claims, |text| {
                values.visit(text, each);
                false
            });
        }
        if let Some((_, subject)) = issuer_and_subject(claims) {
            self.subject.visit(subject, each);
        }
    }

    fn visit_host(&self, host: &str, each: &mut dyn FnMut(&[u32])) {
        if !host.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.host.visit(host, each);
        }
        let mut lower = [0; MAX_HOST_BYTES];
        match lower.get_mut(..host.len()) {
            Some(lower) => {
                lower.copy_from_slice(host.as_bytes());
                lower.make_ascii_lowercase();
                self.host.visit_bytes(lower, each);
            }
            // Longer than any name: look at all.
            None => self.host.visit_all(each),
        }
    }
}

/// Longest name with a port.
const MAX_HOST_BYTES: usize = 263;
