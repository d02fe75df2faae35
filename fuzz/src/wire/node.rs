//! What a node agent says to the proxy, and an operator.

use ambit_node::zds::fuzzing;
use ambit_xds::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest, workload_request::Payload,
};
use arbitrary::{Result, Unstructured};
use prost::Message as _;

use crate::{list, text};

const MAX_MESSAGES: usize = 24;

/// Packets with namespaces: most are requests, some are changed in a place, some are anything.
pub(super) fn zds(bytes: &[u8]) {
    // The messages themselves.
    ambit_xds::fuzzing::zds(bytes);
    let u = &mut Unstructured::new(bytes);
    let Ok(failures) = u.int_in_range(0..=3) else { return };
    if let Ok(packets) = list(u, MAX_MESSAGES, packet) {
        fuzzing::messages(failures, packets.iter().map(|(bytes, files)| (bytes.as_slice(), files.clone())));
    }
}

fn packet(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let payload = match u.int_in_range(0..=9)? {
        0..=3 => Payload::Add(AddWorkload { uid: uid(u)?, workload_info: info(u)? }),
        4 | 5 => Payload::Del(DelWorkload { uid: uid(u)? }),
        6 => Payload::Keep(KeepWorkload { uid: uid(u)? }),
        7 => Payload::SnapshotSent(SnapshotSent {}),
        _ => return Ok((u.arbitrary()?, u.arbitrary()?)),
    };
    let files = match &payload {
        Payload::Add(_) if !u.ratio(1, 16)? => vec![u.int_in_range(0..=2)?],
        _ if u.ratio(1, 16)? => list(u, 2, |u| u.int_in_range(0..=2))?,
        _ => Vec::new(),
    };
    let mut bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    if u.ratio(1, 8)? {
        let place = u.int_in_range(0..=bytes.len() - 1)?;
        bytes[place] = u.arbitrary()?;
    }
    Ok((bytes, files))
}

fn uid(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 16)? { text(u) } else { Ok((*u.choose(&["a", "b", "c"])?).to_owned()) }
}

fn info(u: &mut Unstructured<'_>) -> Result<Option<WorkloadInfo>> {
    let name = (*u.choose(&["n", "m"])?).to_owned();
    let info = WorkloadInfo { name, namespace: "ns".to_owned(), service_account: "sa".to_owned() };
    Ok(if u.ratio(1, 32)? { None } else { Some(info) })
}

/// The query of a change of log levels.
pub(super) fn logging(bytes: &[u8]) {
    ambit_ztunnel::fuzzing::logging(&String::from_utf8_lossy(bytes));
}

pub(super) fn logging_seeds() -> Vec<Vec<u8>> {
    [
        "level=debug",
        "level=dns:trace,access:off",
        "reset=true",
        "level=ztunnel%3A%3Aproxy:warn,info",
        "paths=a&level=error",
    ]
    .map(|query| query.as_bytes().to_vec())
    .to_vec()
}
