//! What metrics call workloads.

use std::sync::Arc;

use ambit_mesh::view::Workload;
use ambit_telemetry::metrics::Party;

/// A workload as metrics name it, with the identity that the control plane gives it.
pub(crate) fn party(workload: &Workload) -> Party {
    let known = |text: &Arc<str>| Some(Arc::clone(text)).filter(|text| !text.is_empty());
    Party {
        workload: known(&workload.canonical.workload),
        namespace: known(&workload.namespace),
        canonical_service: known(&workload.canonical.name),
        canonical_revision: known(&workload.canonical.revision),
        cluster: known(&workload.cluster),
        region: known(&workload.locality.region),
        zone: known(&workload.locality.zone),
        principal: Some(workload.identity.clone()),
    }
}

#[cfg(test)]
mod tests {
    use ambit_xds::workload::{Locality, Workload};

    use crate::tests::fixture::{pod, push, store};

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
}
