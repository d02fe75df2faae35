//! What there is to serve, and what changed when.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use prost::Message;
use tokio::sync::watch;

use crate::{
    ADDRESS_TYPE, DeltaResponse, Resource,
    limits::MAX_REMEMBERED_CHANGES,
    workload::{Address, NetworkAddress, address},
};

/// The resources of every type, shared by the streams that serve them.
#[derive(Debug)]
pub struct Resources {
    state: RwLock<State>,
    changes: watch::Sender<u64>,
}

/// What a stream looks at.
#[derive(Debug, Default)]
pub(super) struct State {
    revision: u64,
    types: BTreeMap<String, Type>,
}

/// The resources of one type.
#[derive(Debug, Default)]
pub(super) struct Type {
    entries: BTreeMap<Arc<str>, Entry>,
    /// Other names: `network/ip` to the resources there.
    aliases: HashMap<String, BTreeSet<Arc<str>>>,
    /// Name of a service to the workloads that are its endpoints.
    members: HashMap<String, BTreeSet<Arc<str>>>,
    /// Names by the revision they changed at, oldest first.
    log: VecDeque<(u64, Arc<str>)>,
    /// The last revision that the log no longer tells of.
    forgotten: u64,
    /// The last change.
    revision: u64,
}

/// A resource.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) version: Arc<str>,
    pub(super) value: Vec<u8>,
    facts: Facts,
}

/// What on-demand clients find it by.
#[derive(Debug, Default)]
struct Facts {
    aliases: Vec<String>,
    services: Vec<String>,
    node: String,
}

// === impl Resources ===

impl Resources {
    /// Nothing yet. Types are there from their first [`Self::apply`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: RwLock::default(), changes: watch::Sender::new(0) })
    }

    /// Takes changes in, as one. A resource without a version gets a digest of its content as one; a resource that says
    /// what it said before isn't a change.
    pub fn apply(&self, deltas: &[DeltaResponse]) {
        // A panic while applying leaves the maps usable: every resource is applied on its own.
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.revision += 1;
        let revision = state.revision;
        for delta in deltas {
            let entries = state.types.entry(delta.type_url.clone()).or_default();
            for name in &delta.removed {
                entries.remove(name, revision);
            }
            for resource in &delta.resources {
                entries.put(&delta.type_url, resource, revision);
            }
        }
        drop(state);
        self.changes.send_replace(revision);
    }

    /// Tells whenever something changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// The last change of anything.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn of(&self, type_url: &str) -> Option<&Type> {
        self.types.get(type_url)
    }
}

// === impl Type ===

impl Type {
    /// The last change of this type.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter()
    }

    /// The names that changed after a revision; nothing if that is no longer known.
    pub(super) fn changed_since(&self, revision: u64) -> Option<BTreeSet<&Arc<str>>> {
        if revision < self.forgotten {
            return None;
        }
        Some(self.log.iter().rev().take_while(|(at, _)| *at > revision).map(|(_, name)| name).collect())
    }

    /// What a name asked for leads to: the resource of that name or address, and if that is a service its workloads.
    pub(super) fn find(&self, name: &str) -> BTreeSet<Arc<str>> {
        let mut found = self.aliases.get(name).cloned().unwrap_or_default();
        found.extend(self.entries.get_key_value(name).map(|(name, _)| Arc::clone(name)));
        let members: Vec<_> = found.iter().filter_map(|name| self.members.get(&**name)).flatten().cloned().collect();
        found.extend(members);
        found
    }

    fn put(&mut self, type_url: &str, resource: &Resource, revision: u64) {
        let Resource { name, version, value } = resource;
        let version =
            if version.is_empty() { Resource::digested(String::new(), value.clone()).version } else { version.clone() };
        if self.entries.get(name.as_str()).is_some_and(|old| *old.version == *version && old.value == *value) {
            return;
        }
        self.forget(name);
        let facts = if type_url == ADDRESS_TYPE { Facts::of_address(value) } else { Facts::default() };
        let name: Arc<str> = name.as_str().into();
        for alias in &facts.aliases {
            self.aliases.entry(alias.clone()).or_default().insert(Arc::clone(&name));
        }
        for service in &facts.services {
            self.members.entry(service.clone()).or_default().insert(Arc::clone(&name));
        }
        self.entries.insert(Arc::clone(&name), Entry { version: version.into(), value: value.clone(), facts });
        self.note(name, revision);
    }

    fn remove(&mut self, name: &str, revision: u64) {
        if let Some(name) = self.forget(name) {
            self.note(name, revision);
        }
    }

    fn forget(&mut self, name: &str) -> Option<Arc<str>> {
        let (name, entry) = self.entries.remove_entry(name)?;
        for (map, keys) in [(&mut self.aliases, &entry.facts.aliases), (&mut self.members, &entry.facts.services)] {
            for key in keys {
                if let Some(names) = map.get_mut(key) {
                    names.remove(&name);
                    if names.is_empty() {
                        map.remove(key);
                    }
                }
            }
        }
        Some(name)
    }

    fn note(&mut self, name: Arc<str>, revision: u64) {
        self.revision = revision;
        self.log.push_back((revision, name));
        if self.log.len() > MAX_REMEMBERED_CHANGES
            && let Some((at, _)) = self.log.pop_front()
        {
            self.forgotten = at;
        }
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn aliases(&self) -> &[String] {
        &self.facts.aliases
    }

    /// Services that it is an endpoint of.
    pub(super) fn services(&self) -> &[String] {
        &self.facts.services
    }

    /// The node it runs on; empty if unknown.
    pub(super) fn node(&self) -> &str {
        &self.facts.node
    }
}

// === impl Facts ===

impl Facts {
    /// What isn't an address has none; serving it isn't prevented by that.
    fn of_address(value: &[u8]) -> Self {
        match Address::decode(value).ok().and_then(|address| address.r#type) {
            None => Self::default(),
            Some(address::Type::Workload(workload)) => Self {
                aliases: workload.addresses.iter().filter_map(|ip| alias(&workload.network, ip)).collect(),
                services: workload.services.into_keys().collect(),
                node: workload.node,
            },
            Some(address::Type::Service(service)) => {
                let aliases = service.addresses.iter().filter_map(|NetworkAddress { network, address, length }| {
                    let alias = alias(network, address)?;
                    Some(length.map_or(alias.clone(), |length| format!("{alias}/{length}")))
                });
                Self { aliases: aliases.collect(), ..Self::default() }
            }
        }
    }
}

fn alias(network: &str, bytes: &[u8]) -> Option<String> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(format!("{network}/{ip}"))
}
