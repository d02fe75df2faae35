//! Reads a query, writes an answer. Pure.

use std::net::IpAddr;

use ambit_mesh::View;
use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};

use super::resolve::{Lookup, Names};
use crate::limits::{DNS_TTL_SECONDS, MAX_DNS_QUERY_BYTES, MAX_DNS_UDP_ANSWER_BYTES};

/// Smallest DNS message: a header.
const HEADER_BYTES: usize = 12;

/// What to do with a query.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send this back.
    Reply(Message),
    /// Ask the host's resolvers; this is the parsed query.
    Forward(Message),
    /// Say nothing: it isn't a query.
    Ignore,
}

/// Judges one received message.
pub(crate) fn answer(view: &View, names: Names<'_>, packet: &[u8]) -> Outcome {
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
    if query.query_class() != DNSClass::IN {
        return Outcome::Reply(response(&request, ResponseCode::NotImp));
    }
    match lookup(view, names, query) {
        Lookup::Foreign => Outcome::Forward(request),
        Lookup::Unknown => Outcome::Reply(response(&request, ResponseCode::NXDomain)),
        Lookup::Known(addresses) => {
            let mut reply = response(&request, ResponseCode::NoError);
            for data in addresses.into_iter().filter_map(|ip| record_data(ip, query.query_type())) {
                reply.add_answer(Record::from_rdata(query.name().clone(), DNS_TTL_SECONDS, data));
            }
            Outcome::Reply(reply)
        }
    }
}

/// The answer when the host's resolvers can't be asked or don't answer.
pub(crate) fn failure(request: &Message) -> Message {
    let mut reply = response(request, ResponseCode::ServFail);
    reply.metadata.authoritative = false;
    reply
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

/// True if this packet is an answer to that query: same id, same question.
pub(crate) fn answers(packet: &[u8], id: u16, query: &Query) -> bool {
    if packet.len() < HEADER_BYTES || packet[..2] != id.to_be_bytes() || packet[2] & 0x80 == 0 {
        return false;
    }
    match Message::from_vec(packet) {
        Ok(reply) => {
            reply.metadata.message_type == MessageType::Response
                && matches!(reply.queries.as_slice(), [asked] if asked.name() == query.name()
                    && asked.query_type() == query.query_type()
                    && asked.query_class() == query.query_class())
        }
        Err(_) => false,
    }
}

fn lookup(view: &View, names: Names<'_>, query: &Query) -> Lookup {
    if let Some(address) = query.name().parse_arpa_name().ok().map(|net| net.addr()) {
        return names.reverse(address);
    }
    let text = query.name().to_ascii().to_ascii_lowercase();
    names.lookup(view, text.strip_suffix('.').unwrap_or(&text))
}

fn response(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DNS_UDP_ANSWER_BYTES);
        reply.set_edns(edns);
    }
    reply
}

fn record_data(ip: IpAddr, asked: RecordType) -> Option<RData> {
    match (ip, asked) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(ip))),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(ip))),
        _ => None,
    }
}
