//! What objects are told of their part in the mesh: status conditions (`spec/control-plane.md` 1.5), computed by the same
//! functions that enforcement is derived by, and written by the replica that leads.

mod wanted;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ambit_mesh::inputs::NamespacedName;

pub(crate) use self::{wanted::wanted, write::keep};

/// A kind whose objects are told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Told {
    Service,
    AuthorizationPolicy,
    RequestAuthentication,
    PeerAuthentication,
}

/// An object.
pub(crate) type Subject = (Told, NamespacedName);

/// Types of conditions that are ours to write, with who writes each.
pub(crate) const OURS: [(&str, &str); 3] = [
    (WAYPOINT_BOUND, "istio-ambient-service"),
    (ZTUNNEL_ACCEPTED, "istio-ambient-ztunnel-policy"),
    (WAYPOINT_ACCEPTED, "istio-ambient-waypoint-policy"),
];
const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";

/// A condition, as it should be or as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// One of [`OURS`].
    pub(crate) kind: &'static str,
    pub(crate) status: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What is known of an object's metadata and status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    /// Its generation, if its kind has one.
    pub(crate) generation: Option<i64>,
    /// The conditions of ours that stand there.
    pub(crate) standing: Vec<Standing>,
}

/// A condition that stands on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) condition: Condition,
    pub(crate) observed_generation: Option<i64>,
    /// Since when its status is what it is, as written.
    pub(crate) since: String,
}

/// What one writer has to write into an object's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) subject: Subject,
    /// Who writes.
    pub(crate) manager: &'static str,
    /// The one condition of this writer; nothing if it is to be removed.
    pub(crate) condition: Option<Condition>,
    pub(crate) generation: Option<i64>,
    /// Since when, if its status stays.
    pub(crate) since: Option<String>,
}

/// What differs between what should stand and what does.
pub(crate) fn differences(wanted: &BTreeMap<Subject, Condition>, known: &BTreeMap<Subject, About>) -> Vec<Write> {
    let none = About::default();
    let mut writes = Vec::new();
    let mut add = |subject: &Subject, condition: Option<&Condition>, about: &About| {
        for (kind, manager) in OURS {
            let condition = condition.filter(|condition| condition.kind == kind);
            let stands = about.standing.iter().find(|standing| standing.condition.kind == kind);
            let is_right = match (condition, stands) {
                (None, None) => true,
                (Some(wanted), Some(stands)) => {
                    *wanted == stands.condition && about.generation == stands.observed_generation
                }
                (None, Some(_)) | (Some(_), None) => false,
            };
            if !is_right {
                let kept = stands.filter(|stands| condition.is_some_and(|new| new.status == stands.condition.status));
                writes.push(Write {
                    subject: subject.clone(),
                    manager,
                    condition: condition.cloned(),
                    generation: about.generation,
                    since: kept.map(|stands| stands.since.clone()),
                });
            }
        }
    };
    for (subject, condition) in wanted {
        add(subject, Some(condition), known.get(subject).unwrap_or(&none));
    }
    for (subject, about) in known.iter().filter(|(subject, _)| !wanted.contains_key(subject)) {
        add(subject, None, about);
    }
    writes
}
