//! Waypoints for Gateways: what a Gateway of the class `istio-waypoint` asks for is made and kept right, and the Gateway told
//! how far that is (`spec/control-plane.md` 1.1, 1.2, 1.5, 1.6).
//!
//! What it does: ServiceAccount, Deployment and Service of each Gateway by server-side apply, owned by it, so that they go
//! with it; its status and addresses; the class, if nobody made it.
//! What it refuses to do: touch an object that somebody else made, write while another replica leads, or take an address back
//! that it once gave.

mod classes;
mod render;
mod status;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ambit_api::Gateway;
use futures_util::StreamExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Service, ServiceAccount},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind, PartialObjectMeta},
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::{
    render::{CLASS_LABEL, MANAGED, NAME_LABEL},
    status::Children,
};
use crate::{
    authority::Leadership,
    limits::{MAX_CONCURRENT_WAYPOINTS, MAX_WAYPOINT_PAUSE, MIN_WAYPOINT_PAUSE, WAYPOINT_TIMEOUT},
};

/// The controller's name in classes, and as a field manager.
pub const CONTROLLER: &str = "istio.io/mesh-controller";
/// Label that says which control plane an object is for.
const REVISION: &str = "istio.io/rev";
/// Annotation of a Gateway with the version of the controller that looks after it.
const CONTROLLER_VERSION: &str = "gateway.istio.io/controller-version";
/// Ours.
const VERSION: u32 = 5;

/// What waypoints are told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The control plane's namespace.
    pub namespace: String,
    /// Its revision; `default` or empty for the only one.
    pub revision: String,
    /// This cluster.
    pub cluster_id: String,
    /// Suffix of service names.
    pub cluster_domain: String,
    /// The trust domain.
    pub trust_domain: String,
    /// An image with `ambit` as its program.
    pub image: String,
    /// Whether nodes pull it.
    pub image_pull_policy: String,
}

/// Why a Gateway isn't looked after.
#[derive(Debug, thiserror::Error)]
enum Problem {
    /// The API server refused or couldn't be asked.
    #[error("{what}: {error}")]
    Api {
        /// What was asked.
        what: String,
        /// What it answered.
        error: Box<kube::Error>,
    },
    /// No answer.
    #[error("{0}: no answer within {WAYPOINT_TIMEOUT:?}")]
    Timeout(String),
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Unreadable(serde_json::Error),
}

struct Keeper {
    client: Client,
    leadership: Leadership,
    settings: Settings,
    /// Failures in a row, by Gateway.
    failures: Mutex<HashMap<String, u32>>,
}

type GatewayMeta = PartialObjectMeta<Gateway>;

/// Looks after every Gateway until `stop`, while this replica leads.
pub async fn keep(client: Client, leadership: Leadership, settings: Settings, stop: CancellationToken) {
    let of_class = watcher::Config::default().labels(&format!("{CLASS_LABEL}={}", render::CLASS));
    let named = |labels: &std::collections::BTreeMap<String, String>, namespace: Option<String>| {
        Some(ObjectRef::<GatewayMeta>::new(labels.get(NAME_LABEL)?).within(&namespace?))
    };
    let deployments = Api::<PartialObjectMeta<Deployment>>::all(client.clone());
    let services = Api::<PartialObjectMeta<Service>>::all(client.clone());
    let accounts = Api::<PartialObjectMeta<ServiceAccount>>::all(client.clone());
    let anew = leadership.gained();
    let classes = classes::keep(client.clone(), leadership.clone(), stop.clone());
    let keeper = Keeper { client: client.clone(), leadership, settings, failures: Mutex::default() };
    let gateways = Controller::new(Api::<GatewayMeta>::all(client), watcher::Config::default())
        .with_config(Config::default().concurrency(MAX_CONCURRENT_WAYPOINTS))
        .watches(deployments, of_class.clone(), move |child| named(child.labels(), child.namespace()))
        .watches(services, of_class.clone(), move |child| named(child.labels(), child.namespace()))
        .watches(accounts, of_class, move |child| named(child.labels(), child.namespace()))
        .reconcile_all_on(anew)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            |gateway, keeper: Arc<Keeper>| async move { keeper.look_after(&gateway).await },
            |gateway, error, keeper| keeper.retry(&gateway, error),
            Arc::new(keeper),
        )
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a gateway wasn't looked after");
            }
        });
    tokio::join!(classes, gateways);
}

// === impl Keeper ===

impl Keeper {
    async fn look_after(&self, meta: &GatewayMeta) -> Result<Action, Problem> {
        let key = of(meta);
        if self.leadership.is_leader() {
            self.bring_about(&meta.namespace().unwrap_or_default(), &meta.name_any()).await?;
        }
        self.failures().remove(&key);
        Ok(Action::await_change())
    }

    async fn bring_about(&self, namespace: &str, name: &str) -> Result<(), Problem> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &gateway_resource());
        let Some(object) = self.asked("reading it", api.get_opt(name)).await? else { return Ok(()) };
        // What it owns goes with it.
        if object.metadata.deletion_timestamp.is_some() || !self.is_ours(&object).await? {
            return Ok(());
        }
        let before = object.data["status"].clone();
        let text = serde_json::to_value(&object).map_err(Problem::Unreadable)?;
        let gateway: Gateway = serde_json::from_value(text).map_err(Problem::Unreadable)?;
        self.claim(&api, &object).await?;
        let mut children = Children::default();
        if render::is_managed(&gateway) {
            let [account, deployment, service] = render::children(&gateway, &self.settings);
            let _: Option<ServiceAccount> = self.child(namespace, &account, &mut children.others).await?;
            children.deployment = self.child(namespace, &deployment, &mut children.others).await?;
            children.service = self.child(namespace, &service, &mut children.others).await?;
        }
        let wanted = status::status(&gateway, &children, &before, &self.settings, k8s_openapi::jiff::Timestamp::now());
        if let Some(wanted) = wanted.filter(|_| self.leadership.is_leader()) {
            let patch = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": name, "namespace": namespace}, "status": wanted,
            });
            let parameters = PatchParams::apply(CONTROLLER).force();
            self.asked("writing its status", api.patch_status(name, &parameters, &Patch::Apply(patch))).await?;
        }
        Ok(())
    }

    /// True if it is of our class, for this control plane, and no newer controller looks after it.
    async fn is_ours(&self, gateway: &DynamicObject) -> Result<bool, Problem> {
        if gateway.data["spec"]["gatewayClassName"] != render::CLASS {
            return Ok(false);
        }
        let version = gateway.annotations().get(CONTROLLER_VERSION);
        if version.is_some_and(|version| version.parse::<u32>().map_or(true, |version| version > VERSION)) {
            return Ok(false);
        }
        let mut revision = gateway.labels().get(REVISION).cloned();
        if revision.is_none() {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            let namespace = gateway.namespace().unwrap_or_default();
            let found = self.asked("reading its namespace", namespaces.get_metadata_opt(&namespace)).await?;
            revision = found.and_then(|found| found.labels().get(REVISION).cloned());
        }
        let usual = |revision: &str| if revision.is_empty() { "default".to_owned() } else { revision.to_owned() };
        Ok(revision.is_none_or(|revision| usual(&revision) == usual(&self.settings.revision)))
    }

    /// Says that it is looked after, so that an older controller leaves it alone.
    async fn claim(&self, api: &Api<DynamicObject>, gateway: &DynamicObject) -> Result<(), Problem> {
        let version = VERSION.to_string();
        if gateway.annotations().get(CONTROLLER_VERSION) == Some(&version) || !self.leadership.is_leader() {
            return Ok(());
        }
        let name = gateway.name_any();
        let patch = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": name, "annotations": {CONTROLLER_VERSION: version}},
        });
        let parameters = PatchParams::apply(CONTROLLER).force();
        self.asked("claiming it", api.patch(&name, &parameters, &Patch::Apply(patch))).await.map(|_| ())
    }

    /// Makes a child what it should be, and gives it as it then is. One that somebody else made is left alone and named.
    async fn child<T: DeserializeOwned>(
        &self,
        namespace: &str,
        wanted: &Value,
        others: &mut Vec<String>,
    ) -> Result<Option<T>, Problem> {
        let text = |field: &str| wanted[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let found = self.asked(&format!("reading {kind} `{name}`"), api.get_opt(name)).await?;
        let mut wanted = wanted.clone();
        if let Some(found) = found {
            if !found.labels().contains_key(MANAGED) {
                others.push(format!("{kind} `{name}`"));
                return Ok(None);
            }
            // If another makes it anew meanwhile, this fails, and is tried again.
            wanted["metadata"]["resourceVersion"] = json!(found.resource_version());
        }
        if !self.leadership.is_leader() {
            return Ok(None);
        }
        let parameters = PatchParams::apply(CONTROLLER).force();
        let patch = Patch::Apply(&wanted);
        let written = api.patch(name, &parameters, &patch);
        let written = self.asked(&format!("writing {kind} `{name}`"), written).await?;
        let written = serde_json::to_value(&written).map_err(Problem::Unreadable)?;
        serde_json::from_value(written).map(Some).map_err(Problem::Unreadable)
    }

    async fn asked<T>(&self, what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<T, Problem> {
        match timeout(WAYPOINT_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Problem::Api { what: what.to_owned(), error: Box::new(error) }),
            Err(_) => Err(Problem::Timeout(what.to_owned())),
        }
    }

    fn retry(&self, gateway: &GatewayMeta, error: &Problem) -> Action {
        let key = of(gateway);
        let mut failures = self.failures();
        let count = failures.entry(key.clone()).or_default();
        let pause = MIN_WAYPOINT_PAUSE.saturating_mul(1 << (*count).min(10)).min(MAX_WAYPOINT_PAUSE);
        *count = count.saturating_add(1);
        tracing::warn!(gateway = key, %error, ?pause, "a waypoint isn't as its Gateway asks; it is tried again");
        Action::requeue(pause)
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn of(gateway: &GatewayMeta) -> String {
    format!("{}/{}", gateway.namespace().unwrap_or_default(), gateway.name_any())
}

fn gateway_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway"))
}
