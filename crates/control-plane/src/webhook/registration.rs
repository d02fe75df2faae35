//! The webhook's registration with the API server: the authority that signed its certificate, and what happens while nobody
//! answers. The leader writes both, and writes them again whenever somebody else changes them.

use data_encoding::BASE64;
use futures_util::StreamExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::limits::{REGISTRATION_REQUEST_TIMEOUT, REGISTRATION_RETRY};

/// Field manager of what the leader writes.
const MANAGER: &str = "ambit-validation";

/// What is to stand in the registration.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Name of the ValidatingWebhookConfiguration.
    pub name: String,
    /// The certificates that the webhook's own is signed by, PEM; empty while there is none.
    pub bundle: watch::Receiver<Vec<u8>>,
    /// Whether this replica writes.
    pub leads: watch::Receiver<bool>,
}

/// Keeps the registration right until `stop`. Start it when the webhook answers: from then on, what can't be reviewed is
/// refused.
pub async fn keep_registration(client: Client, registration: Registration, stop: CancellationToken) {
    let Registration { name, mut bundle, mut leads } = registration;
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(api.clone(), only).default_backoff().applied_objects());
    let mut current: Option<ValidatingWebhookConfiguration> = None;
    let mut again = false;
    loop {
        let retry = async { if again { sleep(REGISTRATION_RETRY).await } else { std::future::pending().await } };
        tokio::select! {
            () = stop.cancelled() => return,
            event = changes.next() => match event {
                Some(Ok(object)) => current = Some(object),
                Some(Err(error)) => {
                    tracing::warn!(error = %error, registration = name, "the webhook's registration can't be watched");
                }
                None => return,
            },
            changed = bundle.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = retry => {}
        }
        let wanted = bundle.borrow_and_update().clone();
        let may_write = *leads.borrow_and_update() && !wanted.is_empty();
        again = false;
        if let Some(object) = current.as_ref().filter(|object| may_write && !is_right(object, &wanted)) {
            match write(&api, &name, object, &wanted).await {
                Ok(written) => current = Some(written),
                Err(problem) => {
                    tracing::warn!(problem, registration = name, "the webhook's registration can't be written");
                    again = true;
                }
            }
        }
    }
}

fn is_right(object: &ValidatingWebhookConfiguration, bundle: &[u8]) -> bool {
    object.webhooks.iter().flatten().all(|webhook| {
        let known = webhook.client_config.ca_bundle.as_ref().is_some_and(|known| known.0 == bundle);
        known && webhook.failure_policy.as_deref() == Some("Fail")
    })
}

async fn write(
    api: &Api<ValidatingWebhookConfiguration>,
    name: &str,
    object: &ValidatingWebhookConfiguration,
    bundle: &[u8],
) -> Result<ValidatingWebhookConfiguration, String> {
    let encoded = BASE64.encode(bundle);
    let webhooks: Vec<_> = object
        .webhooks
        .iter()
        .flatten()
        .map(|webhook| json!({"name": webhook.name, "failurePolicy": "Fail", "clientConfig": {"caBundle": encoded}}))
        .collect();
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": webhooks,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    match timeout(REGISTRATION_REQUEST_TIMEOUT, api.patch(name, &parameters, &Patch::Apply(&patch))).await {
        Ok(Ok(written)) => Ok(written),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API server doesn't answer".to_owned()),
    }
}
