//! The writer of conditions.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, stream};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Told, Write};
use crate::{
    authority::Leadership,
    limits::{CONDITION_TIMEOUT, MAX_CONCURRENT_CONDITIONS, MAX_CONDITION_PAUSE, MIN_CONDITION_PAUSE},
};

/// What became of a write.
enum Outcome {
    Done,
    /// To be tried again.
    Failed,
    /// The object is gone, or the API won't have it: there is nothing more to do until it changes.
    Futile,
}

/// Writes what differs, as long as this replica leads, until `stop`. What is written shows in the watch and is then no longer
/// among the differences; until then it isn't written again.
pub(crate) async fn keep(
    client: Client,
    leadership: Leadership,
    mut differing: watch::Receiver<Arc<Vec<Write>>>,
    stop: CancellationToken,
) {
    let mut leads = leadership.changed();
    let mut done: BTreeMap<(super::Subject, &'static str), Write> = BTreeMap::new();
    let mut pause = MIN_CONDITION_PAUSE;
    loop {
        let writes = Arc::clone(&differing.borrow_and_update());
        let current: BTreeMap<_, _> = writes.iter().map(|write| (key(write), write)).collect();
        done.retain(|key, written| current.get(key).is_some_and(|write| *write == written));
        let mut failed = false;
        if leadership.is_leader() {
            let due: Vec<_> = writes.iter().filter(|write| done.get(&key(write)) != Some(*write)).cloned().collect();
            let outcomes = stream::iter(due).map(|write| {
                let (client, leadership) = (client.clone(), leadership.clone());
                async move {
                    let outcome = if leadership.is_leader() { apply(&client, &write).await } else { Outcome::Failed };
                    (write, outcome)
                }
            });
            let outcomes: Vec<_> = outcomes.buffer_unordered(MAX_CONCURRENT_CONDITIONS).collect().await;
            for (write, outcome) in outcomes {
                match outcome {
                    Outcome::Done | Outcome::Futile => drop(done.insert(key(&write), write)),
                    Outcome::Failed => failed = true,
                }
            }
        } else {
            // Another may have written something else meanwhile.
            done.clear();
        }
        pause = if failed { (pause * 2).min(MAX_CONDITION_PAUSE) } else { MIN_CONDITION_PAUSE };
        let again = async { if failed { sleep(pause).await } else { std::future::pending().await } };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = differing.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

fn key(write: &Write) -> (super::Subject, &'static str) {
    (write.subject.clone(), write.manager)
}

async fn apply(client: &Client, write: &Write) -> Outcome {
    let Write { subject: (told, name), manager, condition, generation, since } = write;
    let (group, version, kind) = told.place();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, &resource);
    let now = || k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let conditions: Vec<_> = condition
        .iter()
        .map(|condition| {
            let mut written = json!({
                "type": condition.kind,
                "status": if condition.status { "True" } else { "False" },
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": since.clone().unwrap_or_else(now),
            });
            if let Some(generation) = generation {
                written["observedGeneration"] = json!(generation);
            }
            written
        })
        .collect();
    let patch = json!({
        "apiVersion": resource.api_version, "kind": kind,
        "metadata": {"name": &*name.name, "namespace": &*name.namespace},
        "status": {"conditions": conditions},
    });
    let parameters = PatchParams::apply(manager).force();
    match timeout(CONDITION_TIMEOUT, api.patch_status(&name.name, &parameters, &Patch::Apply(patch))).await {
        Ok(Ok(_)) => Outcome::Done,
        // It is gone: its watch will say so. Server-side apply to a status makes no objects.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Outcome::Futile,
        Ok(Err(error)) => {
            tracing::warn!(%error, kind, %name, "a condition can't be written");
            let refused = matches!(&error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422));
            if refused { Outcome::Futile } else { Outcome::Failed }
        }
        Err(_) => {
            tracing::warn!(kind, %name, "the API server doesn't answer about a condition");
            Outcome::Failed
        }
    }
}

// === impl Told ===

impl Told {
    /// Group, version and kind.
    fn place(self) -> (&'static str, &'static str, &'static str) {
        let security = "security.istio.io";
        match self {
            Self::Service => ("", "v1", "Service"),
            Self::AuthorizationPolicy => (security, "v1", "AuthorizationPolicy"),
            Self::RequestAuthentication => (security, "v1", "RequestAuthentication"),
            Self::PeerAuthentication => (security, "v1", "PeerAuthentication"),
        }
    }
}
