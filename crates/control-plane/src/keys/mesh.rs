//! Whose keys a mesh wants, and which of its pods may serve them.

use std::net::SocketAddr;

use ambit_api::request_authentication::KeySource;
use ambit_mesh::{
    authentication::{self, Fetched},
    derive,
    inputs::{Change, Inputs, NamespacedName, Pod},
};

use super::{Ranges, Wanted};

/// What is to be fetched as things are now. `moved` moves whenever a pod may have become a key server.
pub(crate) fn wanted(inputs: &Inputs, moved: u64) -> Wanted {
    if inputs.request_authentications.is_empty() {
        return Wanted::default();
    }
    let sources = authentication::key_sources(inputs).into_iter();
    Wanted {
        sources: sources.map(|source| (source.clone(), authentication::timeout(inputs, &source))).collect(),
        ranges: Ranges::parse(&inputs.settings.key_ranges),
        moved,
    }
}

/// Takes keys up, and forgets those that nobody wants any more.
pub(crate) fn changes(inputs: &Inputs, source: KeySource, fetched: Fetched) -> Vec<Change> {
    let wanted = authentication::key_sources(inputs);
    let gone: Vec<_> = inputs.key_sets.keys().filter(|known| !wanted.contains(known)).cloned().collect();
    let mut changes: Vec<_> = gone.into_iter().map(|source| Change::KeySet(source, None)).collect();
    if wanted.contains(&source) {
        changes.push(Change::KeySet(source, Some(fetched)));
    }
    changes
}

/// What to tell the user of fetched keys; nothing if it isn't news.
pub(crate) fn note(inputs: &Inputs, source: &KeySource, fetched: &Fetched) -> Option<String> {
    match (inputs.key_sets.get(source), fetched) {
        (Some(Err(before)), Err(now)) if before == now => None,
        (_, Err(reason)) => Some(format!("{reason}; tokens that need them are refused")),
        (Some(Ok(_)), Ok(_)) => None,
        (None | Some(Err(_)), Ok(_)) => Some(format!("the keys of {source} are in force")),
    }
}

/// The pods behind a name and port of the mesh; nothing if the name isn't the mesh's.
pub(crate) fn endpoints(inputs: &Inputs, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
    let host = host.trim_end_matches('.');
    let domain = inputs.settings.cluster_domain.as_str();
    let of_mesh = host.ends_with(&format!(".{domain}")) || host.ends_with(".svc");
    if !of_mesh {
        return None;
    }
    let name = host.strip_suffix(domain).map_or(host, |front| front.trim_end_matches('.'));
    let name = name.strip_suffix(".svc").and_then(|name| name.split_once('.'));
    let service = name.map(|(name, namespace)| NamespacedName::new(namespace, name));
    let found = service.and_then(|name| Some((name.clone(), inputs.services.get(&name)?)));
    // A name of the mesh that nobody has is nobody else's either.
    let Some((name, service)) = found else { return Some(Vec::new()) };
    let Some(target) = service.ports.iter().find(|known| known.port == port) else { return Some(Vec::new()) };
    let pods = Inputs::in_namespace(&inputs.pods, &name.namespace);
    let ready = pods.filter(|(_, pod)| pod.ready && service.selects(&pod.labels));
    let address = |pod: &Pod| Some(SocketAddr::new(pod.ip?, derive::resolve(pod, &target.target)?));
    Some(ready.filter_map(|(_, pod)| address(pod)).collect())
}
