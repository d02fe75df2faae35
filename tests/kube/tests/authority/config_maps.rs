//! 6.5: the trust bundle in every namespace, by the leader only, put right whenever somebody changes it.

use std::sync::Arc;

use ambit_control_plane::authority::publish::{self, Publication};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{Api, api::ListParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{Cluster, eventually},
    roots::leadership,
};

const NAME: &str = "istio-ca-root-cert";
const SKIPPED: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];

pub async fn every_namespace_has_the_bundle(cluster: &Cluster) {
    for namespace in ["publisher", "local-path-storage"] {
        cluster.run(&["create", "namespace", namespace]);
    }
    let (bundle, seen) = watch::channel::<Arc<str>>("first".into());
    let (lists, seen_lists) = watch::channel::<Option<Arc<str>>>(None);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let leader = leadership(&cluster.client, "publisher", "leader", &stop);
    eventually("it leads", async || leader.is_leader()).await;
    // It never leads, and would write something else.
    let other = leadership(&cluster.client, "publisher", "other", &stop);
    let (_wrong, wrong) = watch::channel::<Arc<str>>("wrong".into());
    for (leadership, publication) in [
        (other.clone(), Publication::roots(wrong)),
        (leader.clone(), Publication::roots(seen)),
        (leader.clone(), Publication::crl(seen_lists)),
    ] {
        tokio::spawn(publish::run(cluster.client.clone(), leadership, publication, stop.clone()));
    }
    eventually("all have it", async || all_have(cluster, NAME, "root-cert.pem", "first").await).await;

    let root_of = |namespace: &'static str| text(cluster, namespace, NAME, "root-cert.pem");
    for change in [
        &["patch", "configmap", NAME, "-n", "app", "--type=merge", "-p", r#"{"data":{"root-cert.pem":"mine"}}"#][..],
        &["label", "configmap", NAME, "-n", "app", "istio.io/config-"],
        &["delete", "configmap", NAME, "-n", "app"],
    ] {
        cluster.run(change);
        eventually("it is put right", async || root_of("app").await.as_deref() == Some("first")).await;
    }
    cluster.run(&["create", "namespace", "later"]);
    eventually("a new namespace has it", async || root_of("later").await.as_deref() == Some("first")).await;

    bundle.send_replace("second".into());
    eventually("all have the new one", async || all_have(cluster, NAME, "root-cert.pem", "second").await).await;
    assert!(text(cluster, "app", "istio-ca-crl", "ca-crl.pem").await.is_none(), "there are no lists");
    lists.send_replace(Some("lists".into()));
    eventually("all have the lists", async || all_have(cluster, "istio-ca-crl", "ca-crl.pem", "lists").await).await;
    assert!(!other.is_leader());
}

/// What the namespace has, if its label is right.
async fn text(cluster: &Cluster, namespace: &str, name: &str, key: &str) -> Option<String> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let found = api.get_opt(name).await.expect("readable")?;
    let label = found.metadata.labels.as_ref().and_then(|labels| labels.get("istio.io/config"));
    label.filter(|value| *value == "true")?;
    found.data?.get(key).cloned()
}

async fn all_have(cluster: &Cluster, name: &str, key: &str, wanted: &str) -> bool {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let all = namespaces.list(&ListParams::default()).await.expect("readable");
    let mut count = 0;
    for namespace in all.items.iter().filter_map(|namespace| namespace.metadata.name.as_deref()) {
        let found = text(cluster, namespace, name, key).await;
        if SKIPPED.contains(&namespace) {
            assert_eq!(found, None, "`{namespace}` is left alone");
        } else if found.as_deref() != Some(wanted) {
            return false;
        } else {
            count += 1;
        }
    }
    // `kube-system` is among them.
    count > 3
}
