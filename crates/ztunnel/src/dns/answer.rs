//! Reads a query, writes an answer. Pure.

use std::{net::IpAddr, str::FromStr};

use ambit_mesh::View;
use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};

use super::resolve::{Family, Found, Lookup, Names};
use crate::limits::{MAX_DNS_QUERY_BYTES, MAX_DNS_UDP_ANSWER_BYTES};

/// Smallest DNS message: a header.
const HEADER_BYTES: usize = 12;

/// What to do with a query.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send this back.
    Reply(Message),
    /// Ask resolvers; this is the parsed query.
    Forward(Message),
    /// Say nothing: it isn't a query.
    Ignore,
}

/// Judges one received message.
pub(crate) fn answer(view: &View, names: Names<'_>, packet: &[u8], random: u64) -> Outcome {
    // A response is never answered, or two resolvers could talk to each other forever.
    if packet.len() < HEADER_BYTES || packet[2] & 0x80 != 0 {
        return Outcome::Ignore;
    }
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    let request = match Message::from_vec(packet) {
        Ok(request) if packet.len() <= MAX_DNS_QUERY_BYTES => request,
        _ => return Outcome::Reply(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)),
    };
    if request.metadata.op_code != OpCode::Query {
        return Outcome::Reply(Message::error_msg(id, request.metadata.op_code, ResponseCode::NotImp));
    }
    let [query] = request.queries.as_slice() else {
        return Outcome::Reply(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    if request.version() > 0 {
        return Outcome::Reply(response(&request, ResponseCode::BADVERS));
    }
    if query.query_class() != DNSClass::IN {
        return Outcome::Reply(response(&request, ResponseCode::NotImp));
    }
    match lookup(view, names, query, random) {
        Lookup::Foreign => Outcome::Forward(request),
        Lookup::Unknown => Outcome::Reply(authoritative(&request, ResponseCode::NXDomain)),
        Lookup::Known(found) => Outcome::Reply(known(&request, query, &found)),
    }
}

/// The answer when resolvers can't be asked or don't answer.
pub(crate) fn failure(request: &Message) -> Message {
    response(request, ResponseCode::ServFail)
}

/// A resolver's answer, or one that is remembered, as the answer to this request.
pub(crate) fn relayed(request: &Message, answer: &Message) -> Message {
    let mut reply = response(request, answer.metadata.response_code);
    reply.metadata.truncation = answer.metadata.truncation;
    let dnssec_ok = wants_dnssec(request);
    reply.metadata.authentic_data = answer.metadata.authentic_data && (dnssec_ok || request.metadata.authentic_data);
    let asked = request.queries.first();
    // The resolver was asked in a spelling of our own; the client gets its question back as it wrote it.
    let spelt = |record: &Record| {
        let mut record = record.clone();
        if let Some(query) = asked.filter(|query| *query.name() == record.name) {
            record.name = query.name().clone();
        }
        record
    };
    reply.answers = answer.answers.iter().map(spelt).collect();
    reply.authorities = answer.authorities.iter().map(spelt).collect();
    reply.additionals = answer.additionals.iter().map(spelt).collect();
    reply
}

/// True if the request asks for DNSSEC records.
pub(crate) fn wants_dnssec(request: &Message) -> bool {
    request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
}

/// Encodes an answer for UDP; one that is too long is cut and marked, so the client comes back over TCP.
pub(crate) fn encode_udp(reply: &Message, client_payload: u16) -> Option<Vec<u8>> {
    let limit = usize::from(client_payload.clamp(512, MAX_DNS_UDP_ANSWER_BYTES));
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut cut = reply.truncate();
    cut.metadata.truncation = true;
    cut.to_vec().ok()
}

/// Reads a packet that should be the answer to that query; nothing if it is the answer to another one.
pub(crate) fn read_answer(packet: &[u8], id: u16, query: &Query) -> Option<Message> {
    if packet.len() < HEADER_BYTES || packet[..2] != id.to_be_bytes() || packet[2] & 0x80 == 0 {
        return None;
    }
    let reply = Message::from_vec(packet).ok()?;
    let [asked] = reply.queries.as_slice() else { return None };
    let fits = reply.metadata.message_type == MessageType::Response
        && asked.name() == query.name()
        && asked.query_type() == query.query_type()
        && asked.query_class() == query.query_class();
    fits.then_some(reply)
}

fn lookup(view: &View, names: Names<'_>, query: &Query, random: u64) -> Lookup {
    if let Some(address) = query.name().parse_arpa_name().ok().map(|net| net.addr()) {
        return names.reverse(address);
    }
    let text = query.name().to_ascii().to_ascii_lowercase();
    let name = text.strip_suffix('.').unwrap_or(&text);
    match query.query_type() {
        RecordType::A => names.lookup(view, name, Family::V4, random),
        RecordType::AAAA => names.lookup(view, name, Family::V6, random),
        _ => match names.exists(view, name) {
            Lookup::Known(found) => Lookup::Known(Found { addresses: Vec::new(), ..found }),
            other => other,
        },
    }
}

fn known(request: &Message, query: &Query, found: &Found) -> Message {
    let mut reply = authoritative(request, ResponseCode::NoError);
    let mut owner = query.name().clone();
    if let Some(alias) = found.alias_of.as_deref().and_then(|alias| Name::from_str(&format!("{alias}.")).ok()) {
        reply.add_answer(Record::from_rdata(owner, found.ttl, RData::CNAME(CNAME(alias.clone()))));
        owner = alias;
    }
    for ip in &found.addresses {
        let data = match ip {
            IpAddr::V4(ip) => RData::A(A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
        };
        reply.add_answer(Record::from_rdata(owner.clone(), found.ttl, data));
    }
    reply
}

fn authoritative(request: &Message, code: ResponseCode) -> Message {
    let mut reply = response(request, code);
    reply.metadata.authoritative = true;
    reply
}

fn response(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DNS_UDP_ANSWER_BYTES).set_dnssec_ok(wants_dnssec(request));
        reply.set_edns(edns);
    }
    reply
}
