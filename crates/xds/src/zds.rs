//! Package `istio.workload.zds` (`spec/control-plane.md` 5.3, `spec/ztunnel.md` 11.1): how a node agent tells a node proxy
//! which pods to serve. One message is one packet of a unix `SOCK_SEQPACKET` socket.

/// The proxy's first packet.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ZdsHello {
    /// What the proxy speaks.
    #[prost(enumeration = "Version", tag = "1")]
    pub version: i32,
}

/// Versions of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    /// Never sent.
    NotUsed = 0,
    /// The only one there is.
    V1 = 1,
}

/// From the agent to the proxy. Each is answered before the next is sent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadRequest {
    /// What is asked.
    #[prost(oneof = "workload_request::Payload", tags = "1, 2, 3, 5")]
    pub payload: Option<workload_request::Payload>,
}

/// Parts of [`WorkloadRequest`].
pub mod workload_request {
    /// What the agent asks.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Payload {
        /// Serve this pod; its network namespace comes with the packet as `SCM_RIGHTS`.
        #[prost(message, tag = "1")]
        Add(super::AddWorkload),
        /// The pod is gone.
        #[prost(message, tag = "2")]
        Del(super::DelWorkload),
        /// Every pod has been named; what was not is gone.
        #[prost(message, tag = "3")]
        SnapshotSent(super::SnapshotSent),
        /// The pod is still there, though its namespace isn't known to the agent. Only before the snapshot is complete.
        #[prost(message, tag = "5")]
        Keep(super::KeepWorkload),
    }
}

/// See [`workload_request::Payload::Add`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddWorkload {
    /// The pod's uid in Kubernetes.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Who the pod is. Required.
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// Who a pod is.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkloadInfo {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Service account.
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// See [`workload_request::Payload::Keep`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeepWorkload {
    /// The pod's uid in Kubernetes.
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// See [`workload_request::Payload::Del`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DelWorkload {
    /// The pod's uid in Kubernetes. (Field 2, unlike everywhere else.)
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// See [`workload_request::Payload::SnapshotSent`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SnapshotSent {}

/// From the proxy to the agent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadResponse {
    /// The answer.
    #[prost(oneof = "workload_response::Payload", tags = "1")]
    pub payload: Option<workload_response::Payload>,
}

/// Parts of [`WorkloadResponse`].
pub mod workload_response {
    /// What the proxy answers.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Payload {
        /// Done, or why not.
        #[prost(message, tag = "1")]
        Ack(super::Ack),
    }
}

/// How a request went.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ack {
    /// Empty if it went well.
    #[prost(string, tag = "1")]
    pub error: String,
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn bytes_are_those_seen_on_the_wire() {
        use workload_request::Payload;
        let uid = || "u".to_owned();
        let request = |payload| WorkloadRequest { payload: Some(payload) }.encode_to_vec();
        assert_eq!(ZdsHello { version: Version::V1 as i32 }.encode_to_vec(), [0x08, 0x01]);
        assert_eq!(request(Payload::Keep(KeepWorkload { uid: uid() })), [0x2a, 0x03, 0x0a, 0x01, b'u']);
        // Field 2, and its uid is field 2 as well.
        assert_eq!(request(Payload::Del(DelWorkload { uid: uid() })), [0x12, 0x03, 0x12, 0x01, b'u']);
        assert_eq!(request(Payload::SnapshotSent(SnapshotSent {})), [0x1a, 0x00]);
        let info = WorkloadInfo { name: "n".into(), namespace: "s".into(), service_account: "a".into() };
        let add = request(Payload::Add(AddWorkload { uid: uid(), workload_info: Some(info) }));
        let inner = [0x0a, 1, b'u', 0x12, 9, 0x0a, 1, b'n', 0x12, 1, b's', 0x1a, 1, b'a'];
        assert_eq!(add, [&[0x0a, 14][..], &inner[..]].concat());
        let ack = workload_response::Payload::Ack(Ack { error: String::new() });
        assert_eq!(WorkloadResponse { payload: Some(ack) }.encode_to_vec(), [0x0a, 0x00]);
    }
}
