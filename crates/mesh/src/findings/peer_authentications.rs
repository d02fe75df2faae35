//! PeerAuthentications: those that don't count, or count for nothing.

use ambit_api::{Severity, peer_authentication::Mode};

use super::{Found, at, codes};
use crate::{
    inputs::{Inputs, contains},
    peer_authentication,
};

const KIND: &str = "PeerAuthentication";

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    for (name, older) in peer_authentication::shadowed(inputs) {
        found.add(
            Severity::Warning,
            codes::SHADOWED_PEER_AUTHENTICATION,
            at(KIND, name, "metadata.name"),
            format!(
                "`{older}` speaks for the same pods and is older (or comes first by name), so this one doesn't count"
            ),
            "keep one of the two",
        );
    }
    for (name, object) in &inputs.peer_authentications {
        let Some(labels) = object.match_labels() else { continue };
        let in_root = *name.namespace == *inputs.settings.root_namespace;
        let mut pods = Inputs::in_namespace(&inputs.pods, &name.namespace).filter(|(_, pod)| pod.waypoint.is_none());
        let (message, help) = if in_root {
            ("in the root namespace one that selects pods has no effect", "remove the selector, or the object")
        } else if !pods.any(|(_, pod)| contains(&pod.labels, labels)) {
            ("its selector matches no pod", "correct the selector")
        } else {
            continue;
        };
        // What was meant to be refused isn't.
        let strict = object.mode() == Mode::Strict || object.ports().any(|(_, mode)| mode == Mode::Strict);
        let severity = if strict && in_root { Severity::Error } else { Severity::Warning };
        let place = at(KIND, name, "spec.selector");
        found.add(severity, codes::PEER_AUTHENTICATION_UNUSED, place, message.into(), help);
    }
}
