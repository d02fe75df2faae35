//! The class of waypoints: made if nobody has, told that it is handled, and otherwise left as it is.

use ambit_mesh::inputs::WAYPOINT_CLASS;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::CONTROLLER;
use crate::{
    authority::Leadership,
    limits::{CLASS_INTERVAL, WAYPOINT_TIMEOUT},
};

const API_VERSION: &str = "gateway.networking.k8s.io/v1";
const KIND: &str = "GatewayClass";

/// Looks at the class whenever this replica starts to lead, and from time to time.
pub(super) async fn keep(client: Client, leadership: Leadership, stop: CancellationToken) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", KIND));
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut leads = leadership.changed();
    loop {
        if leadership.is_leader() {
            match timeout(WAYPOINT_TIMEOUT, look_after(&api)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, class = WAYPOINT_CLASS, "the class can't be looked after"),
                Err(_) => tracing::warn!(class = WAYPOINT_CLASS, "the API server doesn't answer about the class"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => if changed.is_err() { return },
            () = sleep(CLASS_INTERVAL) => {}
        }
    }
}

async fn look_after(api: &Api<DynamicObject>) -> kube::Result<()> {
    let class = match api.get_opt(WAYPOINT_CLASS).await? {
        Some(class) => class,
        None => match api.create(&PostParams::default(), &new_class()).await {
            // Another was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
            created => created?,
        },
    };
    let known = class.data["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let generation = class.metadata.generation;
    let is_told = known.iter().any(|condition| {
        condition["type"] == "Accepted"
            && condition["status"] == "True"
            && condition["observedGeneration"] == json!(generation)
    });
    if is_told || class.data["spec"]["controllerName"] != CONTROLLER {
        return Ok(());
    }
    let accepted: Value = json!({
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "Handled by Ambit's controller",
        "observedGeneration": generation,
        "lastTransitionTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let patch = json!({
        "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": WAYPOINT_CLASS},
        "status": {"conditions": [accepted]},
    });
    let parameters = PatchParams::apply(CONTROLLER).force();
    api.patch_status(WAYPOINT_CLASS, &parameters, &Patch::Apply(patch)).await.map(|_| ())
}

fn new_class() -> DynamicObject {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", KIND));
    DynamicObject::new(WAYPOINT_CLASS, &resource).data(json!({
        "spec": {"controllerName": CONTROLLER, "description": "Waypoints of the mesh"},
    }))
}
