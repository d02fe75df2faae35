//! Entries for fuzzing; nothing here is for use.

use ambit_mesh::View;
use hickory_proto::op::{Message, MessageType, Query};

use super::{
    answer::{Outcome, answer, encode_udp, failure, read_answer, relayed},
    cache::{Cache, Key},
    resolve::Names,
};
use crate::limits::MAX_DNS_UDP_ANSWER_BYTES;

/// Takes any bytes as a query: they are answered, refused or passed on, and every answer can be sent and read. Gives the
/// answers' bytes.
///
/// # Panics
/// When that doesn't hold, which is what fuzzing looks for.
pub fn query(packet: &[u8], view: &View) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    let ranges = ["10.244.0.0/16", "10.96.0.0/16"].map(|range| range.parse().expect("a range"));
    for authoritative in [None, Some(ranges)] {
        let names = Names {
            namespace: "ns",
            cluster_domain: "cluster.local",
            authoritative,
            preferred_namespace: None,
            search: None,
            ipv6: true,
        };
        match answer(view, names, packet, 7) {
            Outcome::Ignore => {}
            Outcome::Reply(reply) => sent.push(check(&reply, packet)),
            Outcome::Forward(request) => {
                sent.push(check(&failure(&request), packet));
                assert!(Key::of(&request).is_some(), "a query that is passed on has one question");
            }
        }
    }
    sent
}

/// Takes any bytes as a resolver's answer to the question in them: it is refused, or remembered and passed on whole. Gives
/// what a client gets of it, over TCP.
///
/// # Panics
/// When that doesn't hold, which is what fuzzing looks for.
pub fn reply(packet: &[u8]) -> Option<Vec<u8>> {
    let parsed = Message::from_vec(packet).ok()?;
    let asked: Vec<Query> = parsed.queries.clone();
    let [query] = asked.as_slice() else { return None };
    let answer = read_answer(packet, parsed.metadata.id, query)?;
    let mut request = Message::query();
    request.add_query(query.clone());
    let (mut cache, now) = (Cache::default(), std::time::Instant::now());
    let key = Key::of(&request).expect("it has a question");
    cache.put(key.clone(), &answer, packet.len(), now);
    if let Some(kept) = cache.get(&key, now) {
        assert_eq!(kept, answer);
    }
    let relayed = relayed(&request, &answer);
    assert_eq!((relayed.metadata.id, &relayed.queries), (request.metadata.id, &request.queries));
    // An answer may hold what can be read but not written; it is dropped then.
    let _ = encode_udp(&relayed, 0).map(|bytes| assert!(bytes.len() <= 512));
    relayed.to_vec().ok()
}

fn check(reply: &Message, packet: &[u8]) -> Vec<u8> {
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert_eq!(reply.metadata.id.to_be_bytes(), packet[..2]);
    let bytes = encode_udp(reply, u16::MAX).expect("an answer that can be sent");
    assert!(bytes.len() <= usize::from(MAX_DNS_UDP_ANSWER_BYTES), "{} bytes", bytes.len());
    let read = Message::from_vec(&bytes).expect("an answer that can be read");
    assert_eq!((read.metadata.id, &read.queries), (reply.metadata.id, &reply.queries));
    let short = encode_udp(reply, 0).expect("an answer that can be sent");
    let cut = Message::from_vec(&short).expect("an answer that can be read").metadata.truncation;
    assert!(short.len() <= 512 && cut == (short != bytes), "{} bytes, cut: {cut}", short.len());
    bytes
}
