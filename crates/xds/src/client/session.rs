//! The client's half of the delta exchange, without IO: what is subscribed to, what is held, and what to answer.

use std::collections::{BTreeMap, BTreeSet};

use super::DemandError;
use crate::{
    DeltaResponse, Resource,
    channel::Nack,
    discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status, WILDCARD},
    limits::{MAX_DEMANDED, MAX_NACK_BYTES, MAX_NAME_BYTES, MAX_REMOVED, MAX_RESOURCES},
};

/// Content that no message has. It stands in for content that didn't come as it should, so that whoever applies it refuses
/// the resource and closes what it governs, rather than keep what was said before.
const UNREADABLE: &[u8] = &[0x07];

/// What is wanted, and what is held, of every type. Outlives the streams.
#[derive(Debug)]
pub(crate) struct Session {
    node: Node,
    types: BTreeMap<String, Type>,
    max_resources: usize,
    max_demanded: usize,
}

#[derive(Debug, Default)]
struct Type {
    on_demand: bool,
    /// The only names wanted; everything is if there are none.
    names: BTreeSet<String>,
    /// Version of each resource that was applied; empty for one that was refused, so that the server sends it again to
    /// the next stream and still says when it is gone.
    held: BTreeMap<String, String>,
    /// Names asked for, and the resource that answered each. Addresses that nobody has aren't kept: they would fill it up.
    demanded: BTreeMap<String, Option<String>>,
    /// A response was applied whole.
    acknowledged: bool,
}

/// A response, checked.
#[derive(Debug)]
pub(crate) struct Received {
    /// To be applied. May be taken out.
    pub(crate) delta: DeltaResponse,
    type_url: String,
    nonce: String,
    removed: Vec<String>,
    /// Version of each resource to be held.
    versions: Vec<(String, String)>,
    /// Resources in `delta` for which there is no room.
    beyond: BTreeSet<String>,
    refused: Vec<(String, String)>,
    aliases: Vec<(String, String)>,
}

/// What an applied response means.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The acknowledgement or refusal to send.
    pub(crate) answer: DeltaDiscoveryRequest,
    /// Ends the subscriptions to addresses that nobody has. Servers expect no such change in an acknowledgement.
    pub(crate) unsubscribe: Option<DeltaDiscoveryRequest>,
    /// Demanded names, and what is now known of each.
    pub(crate) answered: Vec<(String, Result<(), DemandError>)>,
    /// Names that were refused, with reasons.
    pub(crate) refused: Vec<(String, String)>,
}

/// What to do about a name asked for.
#[derive(Debug, PartialEq)]
pub(crate) enum Demand {
    /// It is held.
    Known,
    /// Ask the server by these requests, in this order.
    Ask(Vec<DeltaDiscoveryRequest>),
    /// Too many names.
    Full,
    /// This type is watched as a whole, or not at all.
    WatchedWhole,
}

// === impl Session ===

impl Session {
    pub(crate) fn new(node: Node, watches: impl IntoIterator<Item = (String, bool)>) -> Self {
        let types = watches.into_iter().map(|(url, on_demand)| (url, Type { on_demand, ..Type::default() }));
        Self { node, types: types.collect(), max_resources: MAX_RESOURCES, max_demanded: MAX_DEMANDED }
    }

    /// Of these types only these names, wherever there are some.
    pub(crate) fn naming<'a>(mut self, names: impl IntoIterator<Item = (&'a str, BTreeSet<String>)>) -> Self {
        for (type_url, names) in names {
            if let Some(state) = self.types.get_mut(type_url) {
                state.names = names;
            }
        }
        self
    }

    /// The requests that open a stream: one of each type, and one more for names asked for.
    pub(crate) fn open(&self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for (type_url, state) in &self.types {
            let mut request = self.request(type_url);
            request.node = Some(self.node.clone());
            request.initial_resource_versions = state.held.clone();
            request.resource_names_subscribe = state.names.iter().cloned().collect();
            if state.on_demand {
                // Everything and at once nothing: it says "only what I'll ask for". No names would say "everything".
                request.resource_names_subscribe = vec![WILDCARD.into()];
                request.resource_names_unsubscribe = vec![WILDCARD.into()];
            }
            requests.push(request);
            if !state.demanded.is_empty() {
                let names = state.demanded.keys().cloned().collect();
                requests.push(DeltaDiscoveryRequest { resource_names_subscribe: names, ..self.request(type_url) });
            }
        }
        requests
    }

    /// Checks a response.
    pub(crate) fn read(&self, response: DeltaDiscoveryResponse) -> Received {
        let mut received = Received {
            delta: DeltaResponse { type_url: response.type_url.clone(), ..DeltaResponse::default() },
            type_url: response.type_url,
            nonce: response.nonce,
            removed: Vec::new(),
            versions: Vec::new(),
            beyond: BTreeSet::new(),
            refused: Vec::new(),
            aliases: Vec::new(),
        };
        let Some(state) = self.types.get(&received.delta.type_url) else {
            let reason = format!("type `{}` wasn't asked for", cut(&received.delta.type_url));
            received.refused.push(("*".into(), reason));
            return received;
        };
        if response.removed_resources.len() > MAX_REMOVED {
            let reason =
                format!("{} names are removed at once; at most {MAX_REMOVED}", response.removed_resources.len());
            received.refused.push(("*".into(), reason));
        } else {
            received.removed.clone_from(&response.removed_resources);
            received.delta.removed = response.removed_resources;
        }
        let mut room = self.max_resources.saturating_sub(state.held.len());
        for resource in response.resources {
            let known = state.held.contains_key(&resource.name);
            received.take(resource, known || room > 0, self.max_resources);
            room = room.saturating_sub(usize::from(!known));
        }
        received
    }

    /// Notes what became of a response, and makes the answer to it.
    pub(crate) fn applied(&mut self, received: Received, result: Result<(), Nack>) -> Outcome {
        let Received { type_url, nonce, removed, versions, mut refused, aliases, .. } = received;
        let mut answer = self.request(&type_url);
        answer.response_nonce = nonce;
        if let Err(nack) = result {
            for (name, reason) in nack.rejected {
                // What was found wrong here is the better reason.
                if !refused.iter().any(|(known, _)| *known == name) {
                    refused.push((name, reason));
                }
            }
        }
        let mut answered = Vec::new();
        if let Some(state) = self.types.get_mut(&type_url) {
            let refused: BTreeSet<_> = refused.iter().map(|(name, _)| name.as_str()).collect();
            answered = state.hold(versions, &removed, aliases, &refused);
            state.acknowledged |= refused.is_empty();
        }
        if !refused.is_empty() {
            answer.error_detail = Some(Status { code: 0, message: explain(&refused) });
        }
        let absent = answered.iter().filter(|(name, what)| *what == Err(DemandError::Absent) && is_address(name));
        let unsubscribe = self.unsubscribe(&type_url, absent.map(|(name, _)| name.clone()).collect());
        Outcome { answer, unsubscribe, answered, refused }
    }

    /// Asks for a name. What is known already isn't asked for, unless `again` says that it doesn't do.
    pub(crate) fn demand(&mut self, type_url: &str, name: &str, again: bool) -> Demand {
        let request = self.request(type_url);
        let max_demanded = self.max_demanded;
        let Some(state) = self.types.get_mut(type_url).filter(|state| state.on_demand) else {
            return Demand::WatchedWhole;
        };
        let is_held = state.held.get(name);
        let known =
            is_held.is_some_and(|version| !version.is_empty()) || matches!(state.demanded.get(name), Some(Some(_)));
        if known && !again {
            return Demand::Known;
        }
        // Servers count what they sent as asked for too.
        let subscribed = is_held.is_some() || state.demanded.contains_key(name);
        if !state.demanded.contains_key(name) {
            if state.demanded.len() >= max_demanded {
                return Demand::Full;
            }
            state.demanded.insert(name.to_owned(), None);
        }
        let names = vec![name.to_owned()];
        let subscribe = DeltaDiscoveryRequest { resource_names_subscribe: names.clone(), ..request.clone() };
        // A server need not answer a subscription that changes nothing.
        let unsubscribe = DeltaDiscoveryRequest { resource_names_unsubscribe: names, ..request };
        Demand::Ask(if subscribed { vec![unsubscribe, subscribe] } else { vec![subscribe] })
    }

    /// Gives up addresses that were never answered and that nobody waits for; returns the request that says so.
    pub(crate) fn forget_unanswered(
        &mut self,
        type_url: &str,
        is_awaited: impl Fn(&str) -> bool,
    ) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.get_mut(type_url)?;
        let given_up =
            |name: &str, resource: &Option<String>| resource.is_none() && is_address(name) && !is_awaited(name);
        let names = state.demanded.extract_if(.., |name, resource| given_up(name, resource));
        let names = names.map(|(name, _)| name).collect();
        self.unsubscribe(type_url, names)
    }

    /// True when a response of every type that is watched as a whole was applied.
    pub(crate) fn is_synced(&self) -> bool {
        self.types.values().all(|state| state.acknowledged || state.on_demand)
    }

    /// Takes resources that were kept from an earlier run as held.
    pub(crate) fn restore(&mut self, delta: &DeltaResponse, refused: &BTreeSet<&str>) {
        if let Some(state) = self.types.get_mut(&delta.type_url) {
            for resource in &delta.resources {
                let ok = !refused.contains(resource.name.as_str());
                let version = if ok { resource.version.clone() } else { String::new() };
                state.held.insert(resource.name.clone(), version);
            }
        }
    }

    /// True if this type is watched.
    pub(crate) fn watches(&self, type_url: &str) -> bool {
        self.types.contains_key(type_url)
    }

    fn unsubscribe(&self, type_url: &str, names: Vec<String>) -> Option<DeltaDiscoveryRequest> {
        let request = || DeltaDiscoveryRequest { resource_names_unsubscribe: names.clone(), ..self.request(type_url) };
        (!names.is_empty()).then(request)
    }

    fn request(&self, type_url: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }
    }
}

// === impl Received ===

impl Received {
    /// True if this resource is one to remember.
    pub(crate) fn is_held(&self, name: &str) -> bool {
        !self.beyond.contains(name)
    }

    fn take(&mut self, resource: discovery::Resource, fits: bool, max_resources: usize) {
        let discovery::Resource { name, version, resource: content, aliases } = resource;
        let problem = match &content {
            _ if name.is_empty() || name.len() > MAX_NAME_BYTES => {
                // There is no name to close anything by.
                self.refused.push((cut(&name).to_owned(), format!("a name of {} bytes", name.len())));
                return;
            }
            _ if version.len() > MAX_NAME_BYTES => Some(format!("a version of {} bytes", version.len())),
            _ if !fits => Some(format!("more than {max_resources} resources of its type")),
            None => Some("it has no content".to_owned()),
            Some(any) if any.type_url != self.delta.type_url => {
                Some(format!("its content is a `{}`", cut(&any.type_url)))
            }
            Some(_) => None,
        };
        let value = match (problem, content) {
            (None, Some(any)) => any.value,
            (problem, _) => {
                self.refused.push((name.clone(), problem.unwrap_or_default()));
                UNREADABLE.to_vec()
            }
        };
        if fits {
            self.versions.push((name.clone(), version.clone()));
        } else {
            self.beyond.insert(name.clone());
        }
        self.aliases.extend(aliases.into_iter().map(|alias| (alias, name.clone())));
        self.delta.resources.push(Resource { name, version, value });
    }
}

// === impl Type ===

impl Type {
    /// Notes versions; returns the demanded names that this answers.
    fn hold(
        &mut self,
        versions: Vec<(String, String)>,
        removed: &[String],
        aliases: Vec<(String, String)>,
        refused: &BTreeSet<&str>,
    ) -> Vec<(String, Result<(), DemandError>)> {
        let gone: BTreeSet<&str> = removed.iter().map(String::as_str).collect();
        for name in &gone {
            self.held.remove(*name);
        }
        let leads_nowhere = |name: &str, resource: &Option<String>| {
            gone.contains(name) || resource.as_deref().is_some_and(|resource| gone.contains(resource))
        };
        let mut answered = Vec::new();
        self.demanded.retain(|name, resource| {
            let absent = leads_nowhere(name, resource);
            if absent {
                *resource = None;
                answered.push((name.clone(), Err(DemandError::Absent)));
            }
            !absent || !is_address(name)
        });
        let own = versions.iter().map(|(name, _)| (name.clone(), name.clone()));
        for (alias, name) in own.chain(aliases) {
            if let Some(resource) = self.demanded.get_mut(&alias) {
                let there = !refused.contains(name.as_str());
                *resource = there.then_some(name);
                answered.push((alias, if there { Ok(()) } else { Err(DemandError::Unreadable) }));
            }
        }
        for (name, version) in versions {
            let version = if refused.contains(name.as_str()) { String::new() } else { version };
            self.held.insert(name, version);
        }
        answered
    }
}

/// True for `network/ip`, which resources are found by but aren't called. What such a name has led to stays subscribed to
/// under its own name; ending the subscription to that could leave it as it was for ever.
fn is_address(name: &str) -> bool {
    let ip = name.split_once('/').map(|(_, ip)| ip.parse::<std::net::IpAddr>());
    matches!(ip, Some(Ok(_)))
}

/// `name: reason; name: reason`, cut where it gets too long.
fn explain(refused: &[(String, String)]) -> String {
    let mut message = String::new();
    for (count, (name, reason)) in refused.iter().enumerate() {
        let entry = format!("{}{}: {}", if count == 0 { "" } else { "; " }, cut(name), cut(reason));
        if message.len() + entry.len() > MAX_NACK_BYTES {
            message.push_str(&format!("; and {} more", refused.len() - count));
            break;
        }
        message.push_str(&entry);
    }
    message
}

/// The start of a text that someone else chose the length of.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME_BYTES.min(1024))]
}

#[cfg(test)]
mod tests;
