//! Look-ups for the proxy itself: the addresses of a name, by the same ways as a pod's queries go.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ambit_hbone::Network;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType},
};

use super::{
    answer::Outcome,
    forward::{Transport, forward},
    judge,
};
use crate::{limits::MAX_DNS_ADDRESSES, pod::PodProxy};

/// The addresses that a pod gets for a name, of the kind asked for. Nothing if it gets no answer.
pub(crate) async fn for_pod(pod: &PodProxy, name: &str, kind: RecordType) -> Option<Vec<IpAddr>> {
    let (request, packet) = query(name, kind)?;
    let answer = match judge(pod, &pod.shared.store.load(), &packet) {
        Outcome::Reply(reply) => reply,
        Outcome::Forward(_) => forwarded(pod, &request).await?,
        Outcome::Ignore => return None,
    };
    let addresses: Vec<IpAddr> = addresses(&answer).map(|(ip, _)| ip).collect();
    (!addresses.is_empty()).then_some(addresses)
}

/// The addresses that resolvers outside the mesh give for a name, and how long they may be kept. Nothing if they don't
/// answer.
pub(crate) async fn upstream(pod: &PodProxy, name: &str, kind: RecordType) -> Option<Vec<(IpAddr, Duration)>> {
    let (request, _) = query(name, kind)?;
    Some(addresses(&forwarded(pod, &request).await?).collect())
}

/// The addresses that these resolvers give for a name, for others than the proxy. None if they don't answer.
pub async fn addresses_of(network: &dyn Network, resolvers: &[SocketAddr], name: &str) -> Vec<IpAddr> {
    let ask = async |kind| {
        let answer = forwarded_by(network, resolvers, &query(name, kind)?.0).await?;
        Some(addresses(&answer).map(|(ip, _)| ip).collect::<Vec<_>>())
    };
    let (v4, v6) = tokio::join!(ask(RecordType::A), ask(RecordType::AAAA));
    v4.into_iter().chain(v6).flatten().collect()
}

/// The answer of resolvers outside the mesh, if they have one: that there is no such name is an answer too.
async fn forwarded(pod: &PodProxy, request: &Message) -> Option<Message> {
    forwarded_by(&*pod.egress, &pod.shared.config.upstream_dns, request).await
}

async fn forwarded_by(network: &dyn Network, resolvers: &[SocketAddr], request: &Message) -> Option<Message> {
    let ask = async |transport| forward(network, resolvers, transport, request).await;
    let (answer, _) = ask(Transport::Udp).await?;
    match answer.metadata.truncation {
        true => ask(Transport::Tcp).await.map(|(answer, _)| answer),
        false => Some(answer),
    }
}

fn query(name: &str, kind: RecordType) -> Option<(Message, Vec<u8>)> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let packet = message.to_vec().ok()?;
    Some((message, packet))
}

fn addresses(answer: &Message) -> impl Iterator<Item = (IpAddr, Duration)> {
    let found = answer.answers.iter().filter_map(|record| {
        let ip = match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            _ => return None,
        };
        Some((ip, Duration::from_secs(record.ttl.into())))
    });
    found.take(MAX_DNS_ADDRESSES)
}
