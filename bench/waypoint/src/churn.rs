//! A configuration that changes all the time, always to one under which every request of the load is answered.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ambit_mesh::Store;
use ambit_xds::{ADDRESS_TYPE, DeltaResponse, Resource, WAYPOINT_TYPE, waypoint::AttachedRoute};

use crate::{
    ambit::{bundle, workload},
    backend::Address,
    scenario::{NAMESPACE, OTHER_BACKEND_IP, SERVICE, Shape, VIRTUAL},
};

/// Time between two changes.
const PERIOD: Duration = Duration::from_millis(200);
/// Sizes of the policy set, in turn.
const RULES: [usize; 4] = [2, 20, 200, 21];
/// Where the number of changes is written.
const CHANGES: &str = "changes";
const OTHER_ENDPOINT: &str = "mlflow-1";

/// Changes it until the process ends, which it does when a change is refused.
pub(crate) async fn run(store: Arc<Store>, shape: Shape, backend: Address, folder: PathBuf) {
    let mut ticks = tokio::time::interval(PERIOD);
    for change in 1_u64.. {
        ticks.tick().await;
        let done = apply(&store, shape, backend, change).and_then(|()| {
            fs::write(folder.join(CHANGES), change.to_string())
                .map_err(|error| format!("can't be written down: {error}"))
        });
        if let Err(error) = done {
            eprintln!("change {change}: {error}");
            std::process::exit(1);
        }
    }
}

/// How often it has changed in the process with this folder.
pub(crate) fn changes(folder: &Path) -> u64 {
    // Not there before the first.
    fs::read_to_string(folder.join(CHANGES)).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Every change is one of policies and routes and one of an endpoint, each with a period of its own.
fn apply(store: &Store, shape: Shape, backend: Address, change: u64) -> Result<(), String> {
    let step = usize::try_from(change).unwrap_or_default();
    let routes = match step % 3 {
        0 => Vec::new(),
        _ => attached(&route(change))?,
    };
    let governed = delta(WAYPOINT_TYPE, vec![bundle(RULES[step % RULES.len()], routes)], Vec::new());
    let other = SocketAddr::from((OTHER_BACKEND_IP, backend.plain.port()));
    let pod = workload(OTHER_ENDPOINT, other.ip(), SERVICE, Some(other), shape == Shape::Hbone);
    let reached = match step % 2 {
        0 => delta(ADDRESS_TYPE, vec![pod], Vec::new()),
        _ => delta(ADDRESS_TYPE, Vec::new(), vec![pod.name]),
    };
    store.apply(&[governed, reached]).map_err(|nack| format!("refused: {nack:?}"))
}

fn delta(type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> DeltaResponse {
    DeltaResponse { type_url: type_url.to_owned(), resources, removed }
}

/// A route to the service itself, another one each time.
fn route(change: u64) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: r{}, namespace: {NAMESPACE}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: {SERVICE}}}]\n  \
         rules: [{{backendRefs: [{{name: {SERVICE}, port: {}}}], filters: [{{type: RequestHeaderModifier, \
         requestHeaderModifier: {{set: [{{name: x-change, value: '{change}'}}]}}}}]}}]\n",
        change % 7,
        VIRTUAL.port()
    )
}

fn attached(text: &str) -> Result<Vec<AttachedRoute>, String> {
    let loaded = ambit_api::load_text("route.yaml", text);
    let of = |object: ambit_api::Object| match object.resource {
        ambit_api::Resource::Route(route) => Ok(AttachedRoute {
            kind: route.kind().to_owned(),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            json: serde_json::to_vec(&route).map_err(|error| error.to_string())?,
            rejection: object.rejection.map(|rejection| rejection.reason()).unwrap_or_default(),
            ports: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
        }),
        _ => Err("not a route".to_owned()),
    };
    match loaded.objects.len() {
        1 => loaded.objects.into_iter().map(of).collect(),
        _ => Err(format!("{:?}", loaded.diagnostics)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_taken() {
        let store = Store::new(ambit_policy::Options::default());
        let backend = Address { plain: ([127, 0, 0, 2], 1).into(), hbone_port: 2 };
        for change in 1..=24 {
            assert_eq!(apply(&store, Shape::Hbone, backend, change), Ok(()), "{change}");
        }
    }
}
