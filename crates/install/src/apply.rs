//! Into a cluster, and out of it again.

use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::{
    api::apps::v1::Deployment, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    Settings, chart, objects,
    objects::{CONTROL_PLANE, OWNER},
};

/// Field manager of what is applied.
pub const MANAGER: &str = "ambit-install";
/// How long the API server may take to serve a new kind.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(60);

/// What was done about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Kind, and namespace and name.
    pub object: String,
    /// What.
    pub action: Action,
}

/// What was done about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Made, or brought to what it is to be.
    Applied,
    /// Left as it is: it isn't ours.
    LeftAlone,
    /// Its kind isn't there yet, so a dry run can't tell.
    KindMissing,
    /// Deleted.
    Deleted,
    /// It wasn't there.
    Absent,
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The API server refused, or can't be reached.
    #[error("{object}: {error}")]
    Api {
        /// What it was about.
        object: String,
        /// What it said.
        error: Box<kube::Error>,
    },
    /// Something wasn't ready in time.
    #[error("{0} isn't ready in time; look at its pods and their logs, then try again")]
    NotReady(String),
    /// A definition can't be written.
    #[error("the custom resource definitions can't be written: {0}")]
    Definitions(#[from] serde_json::Error),
}

/// An installation in a cluster.
pub struct Installation {
    client: Client,
    settings: Settings,
    dry_run: bool,
}

// === impl Installation ===

impl Installation {
    /// With `dry_run` the API server checks everything and changes nothing.
    #[must_use]
    pub fn new(client: Client, settings: Settings, dry_run: bool) -> Self {
        Self { client, settings, dry_run }
    }

    /// Makes what lacks and changes what differs: definitions first, then the namespace, then the rest. Definitions and a
    /// namespace that somebody else made are left alone.
    ///
    /// # Errors
    /// The first object that can't be applied. What was applied before stays; doing it again goes on from there.
    pub async fn install(&self) -> Result<Vec<Done>, InstallError> {
        let mut done = Vec::new();
        for definition in ambit_api::schema::definitions()? {
            done.push(self.define(&definition).await?);
        }
        let namespace = chart::namespace(&self.settings);
        done.push(match self.existing(&namespace).await? {
            Some(_) => report(&namespace, Action::LeftAlone),
            None => self.apply(&namespace).await?,
        });
        let namespace_missing = self.dry_run && self.existing(&namespace).await?.is_none();
        for object in objects(&self.settings) {
            done.push(match namespace_missing && object["metadata"]["namespace"].is_string() {
                true => report(&object, Action::KindMissing),
                false => self.apply_ours(object).await?,
            });
        }
        Ok(done)
    }

    /// Waits until the control plane's replicas are available.
    ///
    /// # Errors
    /// They aren't within that time, or the API server can't be asked.
    pub async fn wait(&self, patience: Duration) -> Result<(), InstallError> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let name = format!("Deployment {}/{CONTROL_PLANE}", self.settings.namespace);
        let available = await_condition(api, CONTROL_PLANE, conditions::is_deployment_completed());
        match timeout(patience, available).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(InstallError::NotReady(name)),
        }
    }

    /// Takes away what [`install`](Self::install) made: not the namespace, which holds the CA's key, and the definitions
    /// (with all objects of their kinds) only if told.
    ///
    /// # Errors
    /// The first object that can't be deleted.
    pub async fn uninstall(&self, definitions: bool) -> Result<Vec<Done>, InstallError> {
        // Whatever was switched off since may still be there.
        let all = Settings {
            node_proxy: true,
            webhook: true,
            network_policy: true,
            gateway_classes: true,
            ..self.settings.clone()
        };
        let mut done = Vec::new();
        // The webhook goes first: without its server it would refuse every policy.
        let mut objects = objects(&all);
        objects.sort_by_key(|object| object["kind"] != "ValidatingWebhookConfiguration");
        for object in objects {
            done.push(self.delete(&object).await?);
        }
        if definitions {
            for definition in ambit_api::schema::definitions()? {
                done.push(self.delete(&chart::plain(&definition)?).await?);
            }
        }
        Ok(done)
    }

    async fn define(&self, definition: &CustomResourceDefinition) -> Result<Done, InstallError> {
        let object = chart::plain(definition)?;
        if self.existing(&object).await?.is_some_and(|found| !is_ours(&found)) {
            return Ok(report(&object, Action::LeftAlone));
        }
        let done = self.apply(&object).await?;
        if !self.dry_run {
            let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let established = await_condition(api, name, conditions::is_crd_established());
            match timeout(ESTABLISHED_WITHIN, established).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Err(InstallError::NotReady(done.object)),
            }
        }
        Ok(done)
    }

    async fn apply_ours(&self, mut object: Value) -> Result<Done, InstallError> {
        let existing = self.existing(&object).await?;
        match (object["kind"].as_str(), existing) {
            // A class that is there already serves as well, whoever made it.
            (Some("GatewayClass"), Some(found)) if !is_ours(&found) => Ok(report(&object, Action::LeftAlone)),
            (Some("ValidatingWebhookConfiguration"), Some(_)) => {
                // The control plane has made it strict; that stays.
                if let Some(webhook) = object["webhooks"][0].as_object_mut() {
                    webhook.remove("failurePolicy");
                }
                self.apply(&object).await
            }
            _ => self.apply(&object).await,
        }
    }

    fn apply<'a>(&'a self, object: &'a Value) -> BoxFuture<'a, Result<Done, InstallError>> {
        Box::pin(async move {
            let mut parameters = PatchParams::apply(MANAGER).force();
            parameters.dry_run = self.dry_run;
            let (api, name) = self.api(object);
            match api.patch(&name, &parameters, &Patch::Apply(object)).await {
                Ok(_) => Ok(report(object, Action::Applied)),
                Err(kube::Error::Api(status)) if self.dry_run && status.code == 404 => {
                    Ok(report(object, Action::KindMissing))
                }
                Err(error) => Err(failed(object, error)),
            }
        })
    }

    async fn delete(&self, object: &Value) -> Result<Done, InstallError> {
        let Some(found) = self.existing(object).await? else { return Ok(report(object, Action::Absent)) };
        if !is_ours(&found) {
            return Ok(report(object, Action::LeftAlone));
        }
        let (api, name) = self.api(object);
        let parameters = DeleteParams { dry_run: self.dry_run, ..DeleteParams::background() };
        match api.delete(&name, &parameters).await {
            Ok(_) => Ok(report(object, Action::Deleted)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(report(object, Action::Absent)),
            Err(error) => Err(failed(object, error)),
        }
    }

    /// What is there under this name; nothing either if the kind isn't.
    async fn existing(&self, object: &Value) -> Result<Option<DynamicObject>, InstallError> {
        let (api, name) = self.api(object);
        match api.get_opt(&name).await {
            Ok(found) => Ok(found),
            // So says a server that doesn't know the kind.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(failed(object, error)),
        }
    }

    fn api(&self, object: &Value) -> (Api<DynamicObject>, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
        let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        if kind == "NetworkPolicy" {
            "networkpolicies".clone_into(&mut resource.plural);
        }
        let client = self.client.clone();
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        (api, text(&object["metadata"]["name"]))
    }
}

fn is_ours(object: &DynamicObject) -> bool {
    object.metadata.labels.as_ref().and_then(|labels| labels.get(OWNER.0)).is_some_and(|owner| owner == OWNER.1)
}

fn report(object: &Value, action: Action) -> Done {
    Done { object: name_of(object), action }
}

fn failed(object: &Value, error: kube::Error) -> InstallError {
    InstallError::Api { object: name_of(object), error: Box::new(error) }
}

/// Kind, and namespace and name.
fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
