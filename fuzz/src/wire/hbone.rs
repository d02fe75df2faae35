//! HBONE: the headers of a CONNECT, and HTTP/2 below it.

use std::net::SocketAddr;

use ambit_hbone::{Baggage, ConnectHeaders, Forwarded, TraceParent, WorkloadKind, fuzzing};
use arbitrary::{Result, Unstructured};
use loona_hpack::{Decoder, Encoder};

use super::{joined, parts};
use crate::{list, text};

/// Most header blocks on a connection.
const MAX_BLOCKS: usize = 4;
/// The size of the table that a peer may use.
const TABLE_BYTES: usize = 4096;

/// Lines as headers, and headers that a program might want to send.
pub(super) fn headers(bytes: &[u8]) {
    fuzzing::connect_headers(bytes);
    if let Ok(headers) = connect_headers(&mut Unstructured::new(bytes)) {
        fuzzing::written(&headers);
    }
}

fn connect_headers(u: &mut Unstructured<'_>) -> Result<ConnectHeaders> {
    let kinds = [WorkloadKind::Deployment, WorkloadKind::CronJob, WorkloadKind::Pod, WorkloadKind::Job];
    let kind = *u.choose(&kinds)?;
    let baggage = Baggage {
        cluster: text(u)?,
        namespace: text(u)?,
        workload: if u.arbitrary()? { Some((kind, text(u)?)) } else { None },
        service: text(u)?,
        revision: text(u)?,
        region: text(u)?,
        zone: text(u)?,
    };
    // Flow labels aren't written, and no proxy sees one.
    let client = if u.arbitrary()? { Some(SocketAddr::new(u.arbitrary()?, u.arbitrary()?)) } else { None };
    let host = if u.arbitrary()? { Some(text(u)?) } else { None };
    let trace = TraceParent {
        trace_id: u.int_in_range(1..=u128::MAX)?,
        span_id: u.int_in_range(1..=u64::MAX)?,
        flags: u.arbitrary()?,
    };
    Ok(ConnectHeaders {
        baggage: Some(baggage),
        forwarded: if u.arbitrary()? { Some(Forwarded { client, host }) } else { None },
        trace: if u.arbitrary()? { Some(trace) } else { None },
        network: if u.arbitrary()? { Some(text(u)?) } else { None },
    })
}

pub(super) fn header_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "\0k8s.cluster.name=c,k8s.namespace.name=ns,k8s.deployment.name=d,service.name=s,service.version=v1",
        "\0cloud.region=r, cloud.availability_zone=z;property=1,k8s.job.name=j,,x=y",
        "\x01for=\"10.0.0.1:1234\";host=web.ns.svc.cluster.local;proto=https, for=unknown",
        "\x01For=\"[2001:db8::1]:1\"",
        "\x0200-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "\x03network-1",
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).chain([lines.join("\n").into_bytes()]).collect()
}

/// Header blocks decode as the other implementation decodes them, and fields survive both ways between the two.
pub(super) fn hpack(bytes: &[u8]) {
    let blocks: Vec<&[u8]> = parts(bytes).into_iter().take(MAX_BLOCKS).collect();
    let mut other = Decoder::new();
    other.set_max_allowed_table_size(TABLE_BYTES);
    for (block, ours) in blocks.iter().zip(fuzzing::header_blocks(&blocks)) {
        let theirs = other.decode(block).ok();
        if ours == theirs {
            continue;
        }
        // The RFC wants changes of the table's size at a block's beginning; the other one takes them anywhere but at its
        // end, where it refuses them even alone.
        let late = theirs.is_some() && ours.is_none() && has_late_update(block);
        let alone = theirs.is_none() && ours.as_ref().is_some_and(Vec::is_empty);
        assert!(late || alone, "{block:02x?}: {ours:?}, the other one says {theirs:?}");
        break;
    }
    fields(bytes);
}

/// Each block's parts as names and values in turn.
fn fields(bytes: &[u8]) {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let (mut blocks, mut sent) = (Vec::new(), Vec::new());
    for block in parts(bytes).chunks(6).take(MAX_BLOCKS) {
        let fields: fuzzing::Fields = block.chunks_exact(2).map(|pair| (pair[0].to_vec(), pair[1].to_vec())).collect();
        let ours = fuzzing::header_block(&fields);
        assert_eq!(decoder.decode(&ours).as_ref(), Ok(&fields), "the other one reads what we wrote");
        assert_eq!(fuzzing::header_blocks(&[&ours]), [Some(fields.clone())], "we read what we wrote");
        blocks.push(encoder.encode(fields.iter().map(|(name, value)| (&name[..], &value[..]))));
        sent.push(Some(fields));
    }
    let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    assert_eq!(fuzzing::header_blocks(&blocks), sent, "we read what the other one wrote");
}

/// Whether a sound block changes the table's size after a field.
fn has_late_update(mut block: &[u8]) -> bool {
    let mut fields = false;
    while let Some(&first) = block.first() {
        let (prefix_bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. if fields => return true,
            0x20.. => (5, false),
            _ => (4, true),
        };
        let is_update = (0x20..0x40).contains(&first);
        let index = integer(&mut block, prefix_bits);
        let strings = if literal { 1 + usize::from(index == 0) } else { 0 };
        for _ in 0..strings {
            let length = integer(&mut block, 7);
            block = block.get(length..).unwrap_or_default();
        }
        fields |= !is_update;
    }
    false
}

fn integer(block: &mut &[u8], prefix_bits: u32) -> usize {
    let mask = (1 << prefix_bits) - 1;
    let mut byte = || block.split_off_first().copied().map_or(0, usize::from);
    let mut number = byte() & mask;
    if number == mask {
        for shift in [0, 7, 14, 21] {
            let next = byte();
            number += (next & 0x7f) << shift;
            if next & 0x80 == 0 {
                break;
            }
        }
    }
    number
}

/// The examples of RFC 7541, appendices C.3 to C.6.
pub(super) fn hpack_seeds() -> Vec<Vec<u8>> {
    let sequences: [&[&str]; 4] = [
        &["828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865"],
        &[
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
        &[
            "3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82\
             ae43d3",
            "4883640effc1c0bf",
        ],
        &["20824003616263017a", "3fe11f0f0f017a1003616263017aff8001"],
    ];
    let bytes = |hex: &&str| -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
        digits.chunks(2).map(pair).collect()
    };
    let fields = joined([":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "k8s.namespace.name=ns"]);
    sequences.iter().map(|blocks| joined(blocks.iter().map(bytes))).chain([fields]).collect()
}

/// What peers send: each kind of frame.
pub(super) fn connection_seeds() -> Vec<Vec<u8>> {
    let request = [&[0x42, 7][..], b"CONNECT", &[0x41, 3], b"a:1"].concat();
    let padded = [&[3, 0, 0, 0, 0, 9][..], &request, &[0; 3]].concat();
    let streams = [
        frame(4, 0, 0, &[0, 4, 0, 0, 0xff, 0xff, 0, 3, 0, 0, 0, 5, 0, 5, 0, 0, 0x40, 0]),
        frame(1, 4, 1, &request),
        frame(0, 0, 1, b"hello"),
        frame(0, 8, 1, b"\x02hello\0\0"),
        frame(8, 0, 0, &1000_u32.to_be_bytes()),
        frame(8, 0, 1, &1000_u32.to_be_bytes()),
        frame(1, 0x2c, 3, &padded),
        frame(0, 1, 3, b""),
        frame(3, 0, 1, &8_u32.to_be_bytes()),
    ];
    let others = [
        frame(4, 1, 0, b""),
        frame(6, 0, 0, b"12345678"),
        frame(6, 1, 0, b"draining"),
        frame(1, 0, 1, &request[..5]),
        frame(9, 4, 1, &request[5..]),
        frame(2, 0, 1, b"\0\0\0\0\x10"),
        frame(0x20, 7, 9, b"unknown"),
        frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0, b'b', b'y', b'e']),
    ];
    let answers = [frame(1, 4, 1, &[0x88]), frame(0, 0, 1, &[7; 300]), frame(1, 5, 1, &[0x88])];
    let [streams, others, answers] = [streams.concat(), others.concat(), answers.concat()];
    [(0x3f, &streams), (0xff, &others), (0xfe, &answers), (0, &answers), (0xfe, &others)]
        .map(|(first, bytes)| [&[first], &bytes[..]].concat())
        .to_vec()
}

/// The same with the lengths of pieces in front.
pub(super) fn cut_seeds() -> Vec<Vec<u8>> {
    let cut = |seed: Vec<u8>| [&[seed[0] & 1 | 6, 0, 8, 40, 3][..], &seed[1..]].concat();
    connection_seeds().into_iter().map(cut).collect()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_updates_are_known() {
        for (block, late) in [(&[0x82, 0x20][..], true), (&[0x20, 0x82], false), (&[0x20, 0x3f, 0xe1, 0x1f], false)] {
            assert_eq!(has_late_update(block), late, "{block:02x?}");
        }
        assert!(has_late_update(&[0, 1, b'a', 1, b'b', 0x20]));
        assert!(!has_late_update(&[0, 1, b'a', 1, 0x20]));
    }
}
