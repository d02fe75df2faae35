//! What every namespace is given: the trust bundle and the revocation lists, as ConfigMaps (`spec/control-plane.md` 6.5).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
        watcher,
    },
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::Leadership;
use crate::limits::{CONFIG_MAP_TIMEOUT, MAX_CONCURRENT_CONFIG_MAPS, MAX_CONFIG_MAP_PAUSE, MIN_CONFIG_MAP_PAUSE};

/// Who writes.
const FIELD_MANAGER: &str = "ambit-control-plane";
/// Marks what the mesh gives to namespaces; its value is `true`.
const LABEL: &str = "istio.io/config";
/// Namespaces without workloads of the mesh.
const SKIPPED: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];

/// One ConfigMap for each namespace.
#[derive(Clone, Debug)]
pub struct Publication {
    name: &'static str,
    key: &'static str,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Always(watch::Receiver<Arc<str>>),
    IfAny(watch::Receiver<Option<Arc<str>>>),
}

/// Why a namespace hasn't got it.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The API server refused or couldn't be asked.
    #[error("configmap `{name}` in namespace `{namespace}`: {error}")]
    Api {
        /// The namespace.
        namespace: String,
        /// The ConfigMap.
        name: &'static str,
        /// What it answered.
        error: Box<kube::Error>,
    },
    /// No answer.
    #[error("configmap `{name}` in namespace `{namespace}`: no answer within {CONFIG_MAP_TIMEOUT:?}")]
    Timeout {
        /// The namespace.
        namespace: String,
        /// The ConfigMap.
        name: &'static str,
    },
}

struct Writer {
    client: Client,
    leadership: Leadership,
    publication: Publication,
    /// Failures in a row, by namespace.
    failures: Mutex<HashMap<String, u32>>,
}

type NamespaceMeta = PartialObjectMeta<Namespace>;

/// Keeps the ConfigMap right in every namespace until `stop`, while this replica leads.
pub async fn run(client: Client, leadership: Leadership, publication: Publication, stop: CancellationToken) {
    let namespaces = Api::<NamespaceMeta>::all(client.clone());
    let copies = Api::<PartialObjectMeta<ConfigMap>>::all(client.clone());
    let named = watcher::Config::default().fields(&format!("metadata.name={}", publication.name));
    let anew = stream::select(publication.changes(), leadership.gained());
    let writer = Writer { client, leadership, publication, failures: Mutex::default() };
    Controller::new(namespaces, watcher::Config::default())
        .with_config(Config::default().concurrency(MAX_CONCURRENT_CONFIG_MAPS))
        .watches(copies, named, |copy| copy.namespace().map(|namespace| ObjectRef::<NamespaceMeta>::new(&namespace)))
        .reconcile_all_on(anew)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            |namespace, writer| async move { writer.look_after(&namespace).await },
            |namespace, error, writer| writer.retry(&namespace.name_any(), error),
            Arc::new(writer),
        )
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a namespace's configmap wasn't looked after");
            }
        })
        .await;
}

// === impl Publication ===

impl Publication {
    /// The trust bundle: `istio-ca-root-cert`.
    #[must_use]
    pub fn roots(bundle: watch::Receiver<Arc<str>>) -> Self {
        Self { name: "istio-ca-root-cert", key: "root-cert.pem", content: Content::Always(bundle) }
    }

    /// The revocation lists, if there are any: `istio-ca-crl`.
    #[must_use]
    pub fn crl(lists: watch::Receiver<Option<Arc<str>>>) -> Self {
        Self { name: "istio-ca-crl", key: "ca-crl.pem", content: Content::IfAny(lists) }
    }

    fn now(&self) -> Option<Arc<str>> {
        match &self.content {
            Content::Always(bundle) => Some(Arc::clone(&bundle.borrow())),
            Content::IfAny(lists) => lists.borrow().clone(),
        }
    }

    fn changes(&self) -> impl Stream<Item = ()> + Send + 'static {
        stream::unfold(self.content.clone(), |mut content| async move {
            match &mut content {
                Content::Always(bundle) => bundle.changed().await.ok()?,
                Content::IfAny(lists) => lists.changed().await.ok()?,
            }
            Some(((), content))
        })
    }
}

// === impl Writer ===

impl Writer {
    async fn look_after(&self, namespace: &NamespaceMeta) -> Result<Action, PublishError> {
        let name = namespace.name_any();
        let passed = SKIPPED.contains(&&*name) || namespace.metadata.deletion_timestamp.is_some();
        if !passed {
            self.write(&name).await?;
        }
        self.failures().remove(&name);
        Ok(Action::await_change())
    }

    async fn write(&self, namespace: &str) -> Result<(), PublishError> {
        let Publication { name, key, .. } = self.publication;
        let Some(content) = self.publication.now().filter(|_| self.leadership.is_leader()) else { return Ok(()) };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = self.bounded(namespace, api.get_opt(name)).await?;
        let right = found.is_some_and(|found| {
            found.labels().get(LABEL).is_some_and(|value| value == "true")
                && found.data.as_ref().and_then(|data| data.get(key)).is_some_and(|text| **text == *content)
        });
        if right || !self.leadership.is_leader() {
            return Ok(());
        }
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": namespace, "labels": { LABEL: "true" } },
            "data": { key: &*content },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.bounded(namespace, api.patch(name, &parameters, &Patch::Apply(wanted))).await.map(|_| ())
    }

    async fn bounded<T>(
        &self,
        namespace: &str,
        asked: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PublishError> {
        let (namespace, name) = (|| namespace.to_owned(), self.publication.name);
        match timeout(CONFIG_MAP_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(PublishError::Api { namespace: namespace(), name, error: Box::new(error) }),
            Err(_) => Err(PublishError::Timeout { namespace: namespace(), name }),
        }
    }

    fn retry(&self, namespace: &str, error: &PublishError) -> Action {
        let mut failures = self.failures();
        let count = failures.entry(namespace.to_owned()).or_default();
        let pause = MIN_CONFIG_MAP_PAUSE.saturating_mul(1 << (*count).min(16)).min(MAX_CONFIG_MAP_PAUSE);
        *count = count.saturating_add(1);
        tracing::warn!(%error, ?pause, "tried again later");
        Action::requeue(pause.max(Duration::from_millis(1)))
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
