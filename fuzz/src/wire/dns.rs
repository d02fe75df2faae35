//! DNS: what a pod asks and resolvers answer. The second opinion is `domain`'s.

use std::sync::{Arc, LazyLock};

use ambit_mesh::{Store, View};
use ambit_xds::{
    ADDRESS_TYPE, DeltaResponse, Resource,
    workload::{Address, NetworkAddress, Port, PortList, Service, Workload, address::Type},
};
use domain::base::{Message, Rtype, UnknownRecordData};
use prost::Message as _;

/// Of a record: owner in lower case, type, class, TTL and data.
type Record = (String, Rtype, u16, u32, Vec<u8>);

/// A service with both families, a headless one with a pod, and one outside the cluster.
static VIEW: LazyLock<Arc<View>> = LazyLock::new(|| {
    let vip = |address: &[u8]| NetworkAddress { address: address.to_vec(), ..NetworkAddress::default() };
    let service = |name: &str, hostname: &str, addresses: Vec<NetworkAddress>| Service {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        hostname: hostname.to_owned(),
        addresses,
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Service::default()
    };
    let headless = "headless.ns.svc.cluster.local";
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let pod = Workload {
        uid: "Kubernetes//Pod/ns/one".to_owned(),
        name: "one".to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![vec![10, 244, 0, 2], v6.to_vec()],
        services: [(format!("ns/{headless}"), PortList::default())].into(),
        ..Workload::default()
    };
    let contents = [
        Type::Service(service("app", "app.ns.svc.cluster.local", vec![vip(&[10, 96, 0, 2]), vip(&v6)])),
        Type::Service(service("headless", headless, Vec::new())),
        Type::Service(service("wild", "*.example.com", vec![vip(&[10, 96, 0, 3])])),
        Type::Workload(pod),
    ];
    let resources = contents.into_iter().map(|content| {
        let name = match &content {
            Type::Service(service) => format!("{}/{}", service.namespace, service.hostname),
            Type::Workload(workload) => workload.uid.clone(),
        };
        let value = Address { r#type: Some(content) }.encode_to_vec();
        Resource { name, version: String::new(), value }
    });
    let store = Store::new(ambit_policy::Options::default());
    let response =
        DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: resources.collect(), removed: Vec::new() };
    store.apply(&[response]).expect("a mesh that can be read");
    store.load()
});

/// Whatever is sent back answers the question that the other parser sees.
pub(super) fn query(packet: &[u8]) {
    for reply in ambit_ztunnel::fuzzing::dns::query(packet, &VIEW) {
        let reply = Message::from_octets(reply).expect("a reply has a header");
        let request = Message::from_octets(packet).expect("only what has a header is answered");
        assert_eq!(reply.header().id(), request.header().id());
        assert!(reply.header().qr(), "no reply");
        let asked = questions(&request).filter(|asked| asked.len() == 1);
        let answered = questions(&reply).expect("the other parser reads our questions");
        assert!(answered.is_empty() || asked.is_none_or(|asked| asked == answered), "another question is answered");
        let records = records(&reply, true).expect("the other parser reads our records");
        // Only names and addresses are given out, of the name asked for.
        let mut owner = answered.first().map(|(name, ..)| name.to_ascii_lowercase());
        for (name, kind, _, _, data) in records {
            assert_eq!(Some(&name), owner.as_ref(), "a record of another name");
            match kind {
                Rtype::A => assert_eq!(data.len(), 4),
                Rtype::AAAA => assert_eq!(data.len(), 16),
                Rtype::CNAME => owner = Some(canonical(&reply).expect("a name")),
                other => panic!("a record of type {other}"),
            }
        }
    }
}

/// What is passed on has the answers that the other parser sees in it.
pub(super) fn reply(packet: &[u8]) {
    let Some(relayed) = ambit_ztunnel::fuzzing::dns::reply(packet) else { return };
    let answer = Message::from_octets(packet).expect("only what has a header is passed on");
    let relayed = Message::from_octets(relayed).expect("a reply has a header");
    assert_eq!(relayed.header().rcode(), answer.header().rcode());
    assert_eq!(relayed.header().tc(), answer.header().tc());
    let Some(questions_before) = questions(&answer) else { return };
    assert_eq!(questions(&relayed), Some(questions_before), "the question");
    let Some(before) = records(&answer, false) else { return };
    assert_eq!(records(&relayed, false), Some(before), "the answers");
}

/// Name as it is spelt, type and class of each question.
fn questions<O: AsRef<[u8]>>(message: &Message<O>) -> Option<Vec<(String, Rtype, u16)>> {
    let message = Message::from_slice(message.as_octets().as_ref()).ok()?;
    let questions = message.question().map(|question| {
        let question = question.ok()?;
        Some((question.qname().to_string(), question.qtype(), question.qclass().to_int()))
    });
    questions.collect()
}

/// The answers. Without `names`, only those whose data is addresses or text, which no compression changes.
fn records<O: AsRef<[u8]>>(message: &Message<O>, names: bool) -> Option<Vec<Record>> {
    let message = Message::from_slice(message.as_octets().as_ref()).ok()?;
    let mut records = Vec::new();
    for record in message.answer().ok()? {
        let record = record.ok()?;
        let (kind, class, ttl) = (record.rtype(), record.class().to_int(), record.ttl().as_secs());
        if names || matches!(kind, Rtype::A | Rtype::AAAA | Rtype::TXT) {
            let owner = record.owner().to_string().to_ascii_lowercase();
            let data = record.to_record::<UnknownRecordData<_>>().ok()??;
            records.push((owner, kind, class, ttl, data.data().data().to_vec()));
        }
    }
    Some(records)
}

/// The name at the end of the aliases.
fn canonical<O: AsRef<[u8]>>(message: &Message<O>) -> Option<String> {
    let message = Message::from_slice(message.as_octets().as_ref()).ok()?;
    Some(message.canonical_name()?.to_string().to_ascii_lowercase())
}

pub(super) fn query_seeds() -> Vec<Vec<u8>> {
    let names = [
        "app",
        "one.headless.ns.svc.cluster.local",
        "WWW.example.com",
        "app.ns.svc.cluster.local.ns.svc.cluster.local",
        "2.0.244.10.in-addr.arpa",
        "nobody.svc",
        "",
    ];
    let kinds = [1_u16, 28, 255];
    names.iter().flat_map(|name| kinds.map(|kind| question(name, kind, kind == 28))).collect()
}

pub(super) fn reply_seeds() -> Vec<Vec<u8>> {
    let record = |owner: &[u8], kind: u16, data: &[u8]| {
        let length = u16::try_from(data.len()).expect("short data");
        [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &length.to_be_bytes(), data].concat()
    };
    // A pointer to the question's name.
    let asked = &[0xc0, 12];
    let answers = [
        vec![record(asked, 1, &[192, 0, 2, 1]), record(asked, 1, &[192, 0, 2, 2])],
        vec![record(asked, 5, b"\x03www\x07example\x03net\0"), record(b"\x03www\x07example\x03net\0", 28, &[7; 16])],
        vec![record(asked, 16, b"\x05hello\x05world")],
        vec![record(asked, 999, b"anything")],
        Vec::new(),
    ];
    let soa = [&b"\x01a\0\x01b\0"[..], &[0, 0, 0, 1].repeat(5)].concat();
    answers
        .into_iter()
        .map(|answers| {
            let mut packet = question("www.example.com", 1, false);
            packet[2] |= 0x80;
            packet[7] = u8::try_from(answers.len()).expect("few");
            packet[3] = if answers.is_empty() { 0x83 } else { 0x80 };
            packet.extend(answers.concat());
            packet[9] = 1;
            packet.extend(record(&[0], 6, &soa));
            packet
        })
        .collect()
}

fn question(name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(u8::try_from(label.len()).expect("a label"));
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    if edns {
        packet.extend_from_slice(&[0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 0]);
    }
    packet
}
