//! What metrics call workloads, services and connections (`spec/ztunnel.md` 14).

use std::{net::SocketAddr, sync::Arc};

use ambit_api::SpiffeId;
use ambit_hbone::headers::{Baggage, ConnectHeaders};
use ambit_mesh::{
    View,
    view::{Service, Workload},
};
use ambit_telemetry::metrics::{Party, Reporter, ServiceLabels, TrafficLabels};
use http::HeaderMap;

use crate::{
    guard::Caller,
    route::{Mesh, Way},
};

/// A workload as metrics name it, with the identity that the control plane gives it.
pub(crate) fn party(workload: &Workload) -> Party {
    party_as(workload, Some(workload.identity.clone()))
}

/// The same with the identity that TLS proved, if it proved one.
fn party_as(workload: &Workload, principal: Option<SpiffeId>) -> Party {
    let known = |text: &Arc<str>| Some(Arc::clone(text)).filter(|text| !text.is_empty());
    Party {
        workload: known(&workload.canonical.workload),
        namespace: known(&workload.namespace),
        canonical_service: known(&workload.canonical.name),
        canonical_revision: known(&workload.canonical.revision),
        cluster: known(&workload.cluster),
        region: known(&workload.locality.region),
        zone: known(&workload.locality.zone),
        principal,
    }
}

/// A workload that only its own node proxy describes. What it says of itself proves nothing, so it has no identity.
pub(crate) fn described(baggage: &Baggage) -> Party {
    let known = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Arc::from);
    Party {
        workload: baggage.workload.as_ref().and_then(|(_, name)| known(name)),
        namespace: known(&baggage.namespace),
        canonical_service: known(&baggage.service),
        canonical_revision: known(&baggage.revision),
        cluster: known(&baggage.cluster),
        region: known(&baggage.region),
        zone: known(&baggage.zone),
        principal: None,
    }
}

/// A service as metrics name it.
pub(crate) fn service(service: &Service) -> ServiceLabels {
    ServiceLabels {
        hostname: Some(Arc::clone(&service.key.hostname)),
        namespace: Some(Arc::clone(&service.key.namespace)),
        name: Some(Arc::clone(&service.name)),
    }
}

/// A connection to a pod: who calls by its address, or by what it says of itself where that is unknown here or is that of
/// another network's gateway.
pub(crate) fn inbound(
    view: &View,
    workload: Option<&Workload>,
    caller: &Caller,
    headers: Option<&HeaderMap>,
    takes_baggage: bool,
    called: Option<&Service>,
) -> TrafficLabels {
    let across = headers.is_some_and(|headers| is_from_elsewhere(view, headers));
    let known = view.workload_by_ip(caller.address.ip().to_canonical()).filter(|_| !across);
    let baggage = || Baggage::of(headers.filter(|_| takes_baggage)?).ok().flatten();
    let principal = caller.peer.clone();
    let source = match known {
        Some(workload) => party_as(workload, principal),
        None => Party { principal, ..baggage().as_ref().map(described).unwrap_or_default() },
    };
    TrafficLabels {
        reporter: Reporter::Destination,
        source,
        destination: workload.map(party).unwrap_or_default(),
        service: called.map(service).unwrap_or_default(),
        mutual_tls: caller.peer.is_some(),
    }
}

/// A connection of a pod, to a workload and by mutual TLS if it is one that the mesh knows. `peer` is what the far end says
/// of itself, where only it knows who it is: behind another network's gateway.
pub(crate) fn outbound(
    own: Option<&Workload>,
    asked: Option<&Service>,
    mesh: Option<&Mesh>,
    peer: Option<&Baggage>,
) -> TrafficLabels {
    let mutual_tls = mesh.is_some_and(|mesh| !matches!(mesh.way, Way::Plain(_)));
    let source = own.map(|own| party_as(own, mutual_tls.then(|| own.identity.clone()))).unwrap_or_default();
    let destination = match mesh {
        Some(Mesh { way: Way::Double { .. }, .. }) => peer.map(described).unwrap_or_default(),
        Some(mesh) => party(&mesh.workload),
        None => Party::default(),
    };
    TrafficLabels {
        reporter: Reporter::Source,
        source,
        destination,
        service: asked.map(service).unwrap_or_default(),
        mutual_tls,
    }
}

/// The service that a connection to this port of a workload was probably meant for: the one that the client names, if the
/// workload belongs to it, else one whose port leads there.
pub(crate) fn called<'v>(
    view: &'v View,
    workload: &Workload,
    headers: Option<&HeaderMap>,
    destination: SocketAddr,
) -> Option<&'v Arc<Service>> {
    let mut keys = workload.services.keys();
    // With one service alone nobody has to be asked.
    let named = match (keys.next(), keys.next()) {
        (Some(_), Some(_)) => headers.and_then(named_host),
        _ => None,
    };
    let by_name = named.and_then(|host| workload.services.keys().find(|key| *key.hostname == *host));
    let leads_there = |port: &u16| *port == destination.port();
    let by_port = || workload.services.iter().find(|(_, ports)| ports.values().any(leads_there)).map(|(key, _)| key);
    view.service(by_name.or_else(by_port)?)
}

fn named_host(headers: &HeaderMap) -> Option<String> {
    ConnectHeaders::parse(headers).ok()?.forwarded?.host
}

fn is_from_elsewhere(view: &View, headers: &HeaderMap) -> bool {
    let network = headers.get(ambit_hbone::headers::X_FORWARDED_NETWORK).and_then(|value| value.to_str().ok());
    network.is_some_and(|network| !network.eq_ignore_ascii_case(view.network()))
}

#[cfg(test)]
mod tests {
    use ambit_xds::workload::{Locality, Workload};

    use crate::{
        guard::Caller,
        tests::fixture::{at, pod, push, store},
    };

    #[test]
    fn what_the_control_plane_says_of_a_workload() {
        let store = store();
        let whole = Workload {
            workload_name: "server".to_owned(),
            canonical_name: "app".to_owned(),
            canonical_revision: "v1".to_owned(),
            cluster_id: "c1".to_owned(),
            locality: Some(Locality { region: "r".to_owned(), zone: "z".to_owned(), subzone: "s".to_owned() }),
            ..pod("server-1", "10.244.0.2")
        };
        push(&store, &[&whole], &[]);
        let view = store.load();
        let party = super::party(view.workload(&whole.uid).expect("the workload"));
        let shown = [
            (&party.workload, "server"),
            (&party.namespace, "ns"),
            (&party.canonical_service, "app"),
            (&party.canonical_revision, "v1"),
            (&party.cluster, "c1"),
            (&party.region, "r"),
            (&party.zone, "z"),
        ];
        for (found, expected) in shown {
            assert_eq!(found.as_deref(), Some(expected));
        }
        let identity = party.principal.map(|id| id.to_string());
        assert_eq!(identity.as_deref(), Some("spiffe://cluster.local/ns/ns/sa/server-1"));
    }

    #[test]
    fn what_a_client_says_of_itself_counts_where_nobody_else_knows_and_it_may() {
        let store = store();
        push(&store, &[&pod("known", "10.244.0.3")], &[]);
        let mut headers = http::HeaderMap::new();
        headers.insert("baggage", "k8s.deployment.name=claimed".parse().expect("a value"));
        let name = |address: &str, takes_baggage: bool| {
            let caller = Caller { peer: None, address: at(address), claims: None };
            let labels = super::inbound(&store.load(), None, &caller, Some(&headers), takes_baggage, None);
            labels.source.workload
        };
        assert_eq!(name("10.244.0.9:1", true).as_deref(), Some("claimed"));
        assert_eq!(name("10.244.0.9:1", false), None, "ENABLE_RESPONSE_BAGGAGE=false");
        assert_ne!(name("10.244.0.3:1", true).as_deref(), Some("claimed"), "who is known says nothing of itself");
    }
}
