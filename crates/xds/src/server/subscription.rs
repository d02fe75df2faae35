//! What one stream has asked for and was told, without IO.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;

use super::resources::{Resources, State, Type};
use crate::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, WILDCARD},
    limits::{MAX_DEMANDED, MAX_NAME_BYTES, MAX_RESOURCES, MAX_TYPES_PER_STREAM},
    workload::Any,
};

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The client's node; empty if unknown.
    node: String,
    /// By type. Their order is that of responses: policies (`istio.security`) before addresses (`istio.workload`).
    types: BTreeMap<String, Subscription>,
    nonces: u64,
}

/// One type of it.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    /// What was asked for, and what that led to.
    names: BTreeSet<String>,
    /// The state that the client has been told.
    seen: u64,
    /// The response that isn't answered yet.
    outstanding: Option<String>,
    /// Something to be answered, even by an empty response.
    owed: Option<Owed>,
}

/// What a client waits for.
#[derive(Debug, Default)]
struct Owed {
    /// Everything, less what it holds in this version.
    everything: Option<BTreeMap<String, String>>,
    /// These.
    names: BTreeSet<String>,
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(node: &Node) -> Self {
        let metadata = node.metadata.as_ref();
        let node = metadata.and_then(|metadata| metadata.text("NODE_NAME")).unwrap_or_default().to_owned();
        Self { node, types: BTreeMap::new(), nonces: 0 }
    }

    /// Takes a request in.
    pub(crate) fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let DeltaDiscoveryRequest { type_url, resource_names_subscribe, resource_names_unsubscribe, .. } = &request;
        let full = self.types.len() >= MAX_TYPES_PER_STREAM && !self.types.contains_key(type_url);
        if full || type_url.is_empty() || type_url.len() > MAX_NAME_BYTES {
            return Err(Status::invalid_argument("too many types, or a type without a proper name"));
        }
        let names = resource_names_subscribe.iter().chain(resource_names_unsubscribe);
        if names.chain(request.initial_resource_versions.keys()).any(|name| name.len() > MAX_NAME_BYTES) {
            return Err(Status::invalid_argument("a name is too long"));
        }
        if request.initial_resource_versions.len() > MAX_RESOURCES {
            return Err(Status::resource_exhausted("too many names"));
        }
        match self.types.get_mut(type_url) {
            None => {
                let subscription = Subscription::open(request)?;
                self.types.insert(subscription.0, subscription.1);
                Ok(())
            }
            Some(subscription) => {
                if !request.response_nonce.is_empty()
                    && subscription.outstanding.as_deref() == Some(&request.response_nonce)
                {
                    subscription.outstanding = None;
                    if let Some(status) = &request.error_detail {
                        let reason: String = status.message.chars().take(1024).collect();
                        tracing::warn!(%type_url, %reason, "a client refused a response");
                    }
                }
                subscription.change(&request)
            }
        }
    }

    /// True if [`Self::next_response`] may have something.
    pub(crate) fn is_due(&self, resources: &Resources) -> bool {
        let state = resources.read();
        let mut types = self.types.iter();
        // A type that waits for its answer holds back those behind it, as long as it has something to say itself.
        let mut held_back = false;
        types.any(|(type_url, subscription)| {
            let changed = state.of(type_url).is_some_and(|entries| entries.revision() > subscription.seen);
            let due = subscription.owed.is_some() || changed && subscription.outstanding.is_none() && !held_back;
            held_back |= changed && subscription.outstanding.is_some();
            due
        })
    }

    /// The next response, made from the present state.
    pub(crate) fn next_response(&mut self, resources: &Resources) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let state = resources.read();
        let mut held_back = false;
        for (type_url, subscription) in &mut self.types {
            let changed = state.of(type_url).is_some_and(|entries| entries.revision() > subscription.seen);
            let response = if subscription.owed.is_some() {
                Some(subscription.answer(type_url, &state)?)
            } else if changed && subscription.outstanding.is_none() && !held_back {
                subscription.changes(type_url, &self.node, &state)?
            } else {
                held_back |= changed;
                None
            };
            if let Some(mut response) = response {
                self.nonces += 1;
                response.nonce = self.nonces.to_string();
                response.type_url.clone_from(type_url);
                response.system_version_info = state.revision().to_string();
                subscription.outstanding = Some(response.nonce.clone());
                return Ok(Some(response));
            }
        }
        Ok(None)
    }
}

// === impl Subscription ===

impl Subscription {
    /// The first request of a type.
    fn open(request: DeltaDiscoveryRequest) -> Result<(String, Self), Status> {
        let DeltaDiscoveryRequest { type_url, resource_names_subscribe, resource_names_unsubscribe, .. } = request;
        let wildcard = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        let everything = resource_names_subscribe.is_empty() || wildcard(&resource_names_subscribe);
        let nothing = wildcard(&resource_names_unsubscribe);
        let held = request.initial_resource_versions;
        let mut subscription = Self { wildcard: everything && !nothing, ..Self::default() };
        let mut owed = Owed::default();
        let asked = resource_names_subscribe.into_iter().filter(|name| name != WILDCARD);
        if subscription.wildcard {
            owed.everything = Some(held);
        } else {
            // It holds these from an earlier stream, so it asked for them there.
            owed.names.extend(asked.chain(held.keys().cloned()));
            subscription.names.clone_from(&owed.names);
            owed.everything = Some(held);
        }
        subscription.owed = Some(owed);
        subscription.bounded()?;
        Ok((type_url, subscription))
    }

    /// A later request.
    fn change(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Status> {
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            }
            self.names.remove(name);
        }
        for name in &request.resource_names_subscribe {
            let owed = self.owed.get_or_insert_default();
            if name == WILDCARD {
                self.wildcard = true;
                owed.everything.get_or_insert_default();
            } else {
                owed.names.insert(name.clone());
                self.names.insert(name.clone());
            }
        }
        self.bounded()
    }

    fn bounded(&self) -> Result<(), Status> {
        if self.wildcard || self.names.len() <= MAX_DEMANDED.max(MAX_RESOURCES) {
            Ok(())
        } else {
            Err(Status::resource_exhausted("too many names"))
        }
    }

    /// The answer to what is owed.
    fn answer(&mut self, type_url: &str, state: &State) -> Result<DeltaDiscoveryResponse, Status> {
        let Owed { everything, names } = self.owed.take().unwrap_or_default();
        let empty = Type::default();
        let entries = state.of(type_url).unwrap_or(&empty);
        let whole = self.wildcard && everything.is_some();
        let held = everything.unwrap_or_default();
        let mut response = DeltaDiscoveryResponse::default();
        if whole {
            let changed =
                entries.entries().filter(|(name, entry)| held.get(&***name).is_none_or(|at| **at != *entry.version));
            response.resources = changed.map(|(name, entry)| self.resource(type_url, name, entry)).collect();
            response.removed_resources = held.into_keys().filter(|name| entries.get(name).is_none()).collect();
        } else {
            let mut found = BTreeSet::new();
            for name in names {
                let led_to = entries.find(&name);
                if led_to.is_empty() {
                    response.removed_resources.push(name);
                }
                found.extend(led_to);
            }
            for name in found {
                if let Some(entry) = entries.get(&name)
                    && held.get(&*name).is_none_or(|at| **at != *entry.version)
                {
                    response.resources.push(self.resource(type_url, &name, entry));
                }
                if !self.wildcard {
                    self.names.insert(name.to_string());
                }
            }
            self.bounded()?;
        }
        // An answer about single names says nothing of what else changed meanwhile, so the mark moves only with an answer
        // about everything, or with the first.
        if whole || self.seen == 0 {
            self.seen = state.revision();
        }
        Ok(response)
    }

    /// What changed since the client was told; nothing if none of it concerns the client.
    fn changes(&mut self, type_url: &str, node: &str, state: &State) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let empty = Type::default();
        let entries = state.of(type_url).unwrap_or(&empty);
        let Some(changed) = entries.changed_since(self.seen) else {
            return Err(Status::unavailable("transport is closing: too far behind; say again what you hold"));
        };
        let mut response = DeltaDiscoveryResponse::default();
        for name in changed {
            match entries.get(name) {
                Some(entry) => {
                    let local = !node.is_empty() && entry.node() == node;
                    let named = |names: &[String]| names.iter().any(|name| self.names.contains(name));
                    let asked = self.names.contains(&**name) || named(entry.aliases()) || named(entry.services());
                    if self.wildcard || asked || local {
                        response.resources.push(self.resource(type_url, name, entry));
                        if !self.wildcard {
                            self.names.insert(name.to_string());
                        }
                    }
                }
                None if self.wildcard || self.names.contains(&**name) => {
                    response.removed_resources.push(name.to_string());
                }
                None => {}
            }
        }
        self.seen = state.revision();
        self.bounded()?;
        let nothing = response.resources.is_empty() && response.removed_resources.is_empty();
        Ok((!nothing).then_some(response))
    }

    fn resource(&self, type_url: &str, name: &str, entry: &super::resources::Entry) -> Resource {
        Resource {
            name: name.to_owned(),
            version: entry.version.to_string(),
            resource: Some(Any { type_url: type_url.to_owned(), value: entry.value.clone() }),
            // Others find by what is in the resources.
            aliases: if self.wildcard { Vec::new() } else { entry.aliases().to_vec() },
        }
    }
}

#[cfg(test)]
mod tests;
