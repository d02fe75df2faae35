//! Random packets, made of real ones: a short run of what `cargo xtask fuzz` does for long.

use hickory_proto::{
    op::{Edns, Message},
    rr::{Record, RecordType, rdata::A},
};

use super::query;
use crate::{
    dns::fuzzing,
    tests::fixture::{endpoint, pod, push, service, store},
};

/// Packets tried; `AMBIT_RANDOM_RUNS` says otherwise.
const RUNS: u64 = 20_000;

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Changes, adds, removes and copies bytes.
fn mutate(packet: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..1 + next(state) % 6 {
        let at = next(state) as usize % packet.len().max(1);
        match next(state) % 6 {
            0 if !packet.is_empty() => packet[at] = next(state) as u8,
            1 if !packet.is_empty() => packet[at] ^= 1 << (next(state) % 8),
            2 => packet.insert(at.min(packet.len()), next(state) as u8),
            3 if packet.len() > 1 => packet.truncate(at),
            4 if !packet.is_empty() => packet[at] = [0, 0x3f, 0x40, 0xc0, 0xff][next(state) as usize % 5],
            _ => {
                let end = (at + next(state) as usize % 16).min(packet.len());
                let copy = packet[at.min(end)..end].to_vec();
                packet.extend(copy);
            }
        }
    }
}

#[test]
fn no_packet_breaks_it() {
    let store = store();
    let headless = endpoint(pod("one", "10.244.0.2"), "headless", 80, 8080);
    push(&store, &[&headless], &[&service("app", &["10.96.0.2"], 80, None), &service("headless", &[], 80, None)]);
    let view = store.load();
    let mut seeds = Vec::new();
    for name in ["app", "one.headless.ns.svc.cluster.local.", "www.example.com.", "2.0.244.10.in-addr.arpa.", "."] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::ANY, RecordType::Unknown(999)] {
            let mut message = query(name, kind);
            seeds.push(message.to_vec().expect("a packet"));
            message.set_edns(Edns::new());
            seeds.push(message.to_vec().expect("a packet"));
            let mut reply = message.into_response();
            let owner = reply.queries[0].name().clone();
            let data = hickory_proto::rr::RData::A(A([192, 0, 2, 1].into()));
            reply.add_answer(Record::from_rdata(owner, 60, data));
            seeds.push(reply.to_vec().expect("a packet"));
        }
    }
    let runs = std::env::var("AMBIT_RANDOM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let (mut state, mut readable) = (0x2545_f491_4f6c_dd1d, 0_u64);
    for _ in 0..runs {
        let mut packet = seeds[next(&mut state) as usize % seeds.len()].clone();
        mutate(&mut packet, &mut state);
        readable += u64::from(Message::from_vec(&packet).is_ok());
        let _ = fuzzing::query(&packet, &view);
        let _ = fuzzing::reply(&packet);
    }
    assert!(readable > runs / 10, "most of them say nothing: {readable} of {runs} can be read");
}
