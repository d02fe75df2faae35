//! What is said, as types that can't be wrong.

use ambit_xds::zds::workload_request::Payload;
use ambit_xds::zds::{
    Ack, AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadRequest, WorkloadResponse, ZdsHello,
    workload_response,
};
use prost::Message as _;

use crate::limits::ZDS_MESSAGE_BYTES;

/// Who a pod is, as the agent knows it. The identity is the control plane's word, not the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadInfo {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// What the agent asks. `N` is the pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request<N> {
    Add { uid: Box<str>, info: WorkloadInfo, network: N },
    Keep { uid: Box<str> },
    Del { uid: Box<str> },
    SnapshotSent,
}

/// A message that isn't one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("it is no `{0}`: {1}")]
    Format(&'static str, String),
    #[error("it asks nothing this version knows of")]
    Empty,
    #[error("it has no pod uid")]
    Uid,
    #[error("`AddWorkload` has to bring exactly one network namespace, not {0} files")]
    Files(usize),
    #[error("only `AddWorkload` may bring a file")]
    StrayFile,
    /// The agent breaks the protocol, which no new connection will mend.
    #[error("`AddWorkload` of pod `{0}` has no `workload_info`")]
    Info(Box<str>),
}

// === impl Request ===

impl<N> Request<N> {
    /// The same about another kind of network.
    pub(super) fn try_map_network<M, E>(self, map: impl FnOnce(N) -> Result<M, E>) -> Result<Request<M>, E> {
        Ok(match self {
            Self::Add { uid, info, network } => Request::Add { uid, info, network: map(network)? },
            Self::Keep { uid } => Request::Keep { uid },
            Self::Del { uid } => Request::Del { uid },
            Self::SnapshotSent => Request::SnapshotSent,
        })
    }
}

/// Reads what the agent asks; `files` are the descriptors that came with it. All but the one that's used are closed.
pub(super) fn decode_request<N>(bytes: &[u8], mut files: Vec<N>) -> Result<Request<N>, DecodeError> {
    let request =
        WorkloadRequest::decode(bytes).map_err(|error| DecodeError::Format("WorkloadRequest", error.to_string()))?;
    let payload = request.payload.ok_or(DecodeError::Empty)?;
    if !files.is_empty() && !matches!(payload, Payload::Add(_)) {
        return Err(DecodeError::StrayFile);
    }
    match payload {
        Payload::Add(add) => {
            let uid = named(add.uid)?;
            let info = add.workload_info.ok_or_else(|| DecodeError::Info(uid.clone()))?;
            let info =
                WorkloadInfo { name: info.name, namespace: info.namespace, service_account: info.service_account };
            match (files.len(), files.pop()) {
                (1, Some(network)) => Ok(Request::Add { uid, info, network }),
                (count, _) => Err(DecodeError::Files(count)),
            }
        }
        Payload::Keep(keep) => Ok(Request::Keep { uid: named(keep.uid)? }),
        Payload::Del(del) => Ok(Request::Del { uid: named(del.uid)? }),
        Payload::SnapshotSent(_) => Ok(Request::SnapshotSent),
    }
}

fn named(uid: String) -> Result<Box<str>, DecodeError> {
    if uid.is_empty() { Err(DecodeError::Uid) } else { Ok(uid.into()) }
}

/// The same, written. The namespace goes beside it.
pub(super) fn encode_request<N>(request: &Request<N>) -> Vec<u8> {
    let payload = match request {
        Request::Add { uid, info, .. } => Payload::Add(AddWorkload {
            uid: uid.to_string(),
            workload_info: Some(ambit_xds::zds::WorkloadInfo {
                name: info.name.clone(),
                namespace: info.namespace.clone(),
                service_account: info.service_account.clone(),
            }),
        }),
        Request::Keep { uid } => Payload::Keep(KeepWorkload { uid: uid.to_string() }),
        Request::Del { uid } => Payload::Del(DelWorkload { uid: uid.to_string() }),
        Request::SnapshotSent => Payload::SnapshotSent(SnapshotSent {}),
    };
    WorkloadRequest { payload: Some(payload) }.encode_to_vec()
}

/// The proxy's answer. A long reason is cut, so that the answer fits the agent's buffer.
pub(super) fn encode_ack(outcome: &Result<(), String>) -> Vec<u8> {
    // Tags and lengths of the two nested messages take less than this.
    const FRAMING_BYTES: usize = 16;
    let mut error = outcome.as_ref().err().cloned().unwrap_or_default();
    let mut end = error.len().min(ZDS_MESSAGE_BYTES - FRAMING_BYTES);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error.truncate(end);
    WorkloadResponse { payload: Some(workload_response::Payload::Ack(Ack { error })) }.encode_to_vec()
}

/// The proxy's answer: done, or its reason why not.
pub(super) fn decode_ack(bytes: &[u8]) -> Result<Result<(), String>, DecodeError> {
    let response =
        WorkloadResponse::decode(bytes).map_err(|error| DecodeError::Format("WorkloadResponse", error.to_string()))?;
    match response.payload {
        Some(workload_response::Payload::Ack(Ack { error })) if error.is_empty() => Ok(Ok(())),
        Some(workload_response::Payload::Ack(Ack { error })) => Ok(Err(error)),
        None => Err(DecodeError::Empty),
    }
}

/// The proxy's first packet.
pub(super) fn encode_hello() -> Vec<u8> {
    ZdsHello { version: Version::V1.into() }.encode_to_vec()
}

/// True for a hello of the version that this crate speaks.
pub(super) fn is_hello(bytes: &[u8]) -> bool {
    ZdsHello::decode(bytes).is_ok_and(|hello| hello.version() == Version::V1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> WorkloadInfo {
        WorkloadInfo { name: "n".to_owned(), namespace: "ns".to_owned(), service_account: "sa".to_owned() }
    }

    #[test]
    fn the_bytes_are_those_of_the_original() {
        assert_eq!(encode_hello(), [0x08, 0x01]);
        assert_eq!(encode_ack(&Ok(())), [0x0a, 0x00]);
        assert_eq!(encode_ack(&Err("no".to_owned())), [0x0a, 0x04, 0x0a, 0x02, b'n', b'o']);
        let cases: [(Request<u8>, &[u8]); 4] = [
            (
                Request::Add { uid: "u".into(), info: info(), network: 0 },
                b"\x0a\x10\x0a\x01u\x12\x0b\x0a\x01n\x12\x02ns\x1a\x02sa",
            ),
            (Request::Del { uid: "u".into() }, b"\x12\x03\x12\x01u"),
            (Request::SnapshotSent, b"\x1a\x00"),
            (Request::Keep { uid: "u".into() }, b"\x2a\x03\x0a\x01u"),
        ];
        for (request, bytes) in cases {
            assert_eq!(encode_request(&request), bytes, "{request:?}");
            let files = if matches!(request, Request::Add { .. }) { vec![0] } else { vec![] };
            assert_eq!(decode_request(bytes, files), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let add = b"\x0a\x10\x0a\x01u\x12\x0b\x0a\x01n\x12\x02ns\x1a\x02sa";
        let cases: [(&[u8], usize, DecodeError); 7] = [
            (b"", 0, DecodeError::Empty),
            // A payload of a later version.
            (b"\x3a\x00", 0, DecodeError::Empty),
            (b"\x12\x00", 0, DecodeError::Uid),
            (add, 0, DecodeError::Files(0)),
            (add, 2, DecodeError::Files(2)),
            (b"\x1a\x00", 1, DecodeError::StrayFile),
            (b"\x0a\x03\x0a\x01u", 1, DecodeError::Info("u".into())),
        ];
        for (bytes, files, error) in cases {
            assert_eq!(decode_request(bytes, vec![(); files]), Err(error), "{bytes:?} with {files} files");
        }
        assert!(matches!(decode_request::<()>(b"\xff", Vec::new()), Err(DecodeError::Format(..))));
    }

    #[test]
    fn a_long_reason_is_cut_between_letters() {
        let answer = encode_ack(&Err("ö".repeat(ZDS_MESSAGE_BYTES)));
        assert!(answer.len() <= ZDS_MESSAGE_BYTES, "{}", answer.len());
        let reason = decode_ack(&answer).expect("an answer").expect_err("a refusal");
        assert!(reason.len() > ZDS_MESSAGE_BYTES / 2 && reason.chars().all(|letter| letter == 'ö'));
    }

    #[test]
    fn only_version_one_is_a_hello() {
        for (bytes, expected) in
            [(&b"\x08\x01"[..], true), (b"", false), (b"\x08\x00", false), (b"\x08\x02", false), (b"\xff", false)]
        {
            assert_eq!(is_hello(bytes), expected, "{bytes:?}");
        }
    }
}
