//! The mesh as the API has it, and what changes in it come to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ambit_api::{
    MeshConfig, PeerAuthentication,
    peer_authentication::{Mode, MutualTls, PeerAuthenticationSpec},
    request_authentication::KeySource,
};
use ambit_mesh::{
    Index,
    authentication::Fetched,
    inputs::{Change, Inputs, NamespacedName, Service, Settings},
};
use ambit_xds::DeltaResponse;

use super::{
    convert::{Content, Item, MANAGED},
    directory::Directory,
    kinds::Kind,
    watch::Event,
};
use crate::{
    conditions::{self, About, Subject, Write},
    keys,
};

/// The mesh, without anything that does IO.
#[derive(Debug)]
pub(super) struct State {
    index: Index,
    /// What holds where no MeshConfig says otherwise.
    usual: Settings,
    configs: BTreeMap<Arc<str>, MeshConfig>,
    directory: Arc<Directory>,
    /// What has been told of each kind until every one has been listed, so that all of it is taken in at once; nothing after.
    waiting: Option<BTreeMap<Kind, BTreeMap<NamespacedName, Item>>>,
    /// Generations and conditions of the objects that are told something.
    abouts: BTreeMap<Subject, About>,
    /// Moves when pods have come or gone, or become ready or not.
    moved: u64,
}

// === impl State ===

impl State {
    pub(super) fn new(usual: Settings, directory: Arc<Directory>) -> Self {
        Self {
            index: Index::new(usual.clone()),
            usual,
            configs: BTreeMap::new(),
            directory,
            waiting: Some(BTreeMap::new()),
            abouts: BTreeMap::new(),
            moved: 0,
        }
    }

    pub(super) fn inputs(&self) -> &Inputs {
        self.index.inputs()
    }

    /// Kinds that are waited for.
    pub(super) fn lacking(&self) -> Vec<Kind> {
        let Some(waiting) = &self.waiting else { return Vec::new() };
        Kind::ALL.iter().copied().filter(|kind| !waiting.contains_key(kind)).collect()
    }

    /// Takes in what has happened; what proxies are to be told of it, policies before the workloads that name them.
    pub(super) fn take(&mut self, events: Vec<Event>) -> Vec<DeltaResponse> {
        let mut events = newest(self.first(events));
        // Stable: the events of one kind keep their order, and those of different kinds have none.
        events.sort_by_key(Event::kind);
        let mut changes = Vec::new();
        for event in events {
            match event {
                Event::All(kind, items) => self.all(kind, items, &mut changes),
                Event::Applied(kind, item) => self.item(kind, item, &mut changes),
                Event::Deleted(kind, name) => self.gone(kind, name, &mut changes),
            }
        }
        self.addresses(&mut changes);
        self.index.apply(changes)
    }

    /// Holds events back until every kind has been listed; then they are all that there is.
    fn first(&mut self, events: Vec<Event>) -> Vec<Event> {
        let Some(waiting) = &mut self.waiting else { return events };
        for event in events {
            match event {
                Event::All(kind, items) => {
                    let items = items.into_iter().map(|item| (item.name.clone(), item)).collect();
                    waiting.insert(kind, items);
                }
                // What comes of a kind before its first list will be in it, and mustn't pass for one.
                Event::Applied(kind, item) => {
                    waiting.get_mut(&kind).map(|items| items.insert(item.name.clone(), item));
                }
                Event::Deleted(kind, name) => {
                    waiting.get_mut(&kind).map(|items| items.remove(&name));
                }
            }
        }
        if waiting.len() < Kind::ALL.len() {
            return Vec::new();
        }
        let all = self.waiting.take().unwrap_or_default();
        all.into_iter().map(|(kind, items)| Event::All(kind, items.into_values().collect())).collect()
    }

    /// What differs between what objects should be told and what stands there; nothing before all is known.
    pub(super) fn differing(&self) -> Vec<Write> {
        if self.waiting.is_some() {
            return Vec::new();
        }
        conditions::differences(&conditions::wanted(self.index.inputs()), &self.abouts)
    }

    /// Takes fetched keys in.
    pub(super) fn take_keys(&mut self, source: KeySource, fetched: Fetched) -> Vec<DeltaResponse> {
        let changes = keys::changes(self.index.inputs(), source, fetched);
        self.index.apply(changes)
    }

    /// Whose keys are wanted.
    pub(super) fn wanted_keys(&self) -> keys::Wanted {
        keys::wanted(self.index.inputs(), self.moved)
    }

    fn all(&mut self, kind: Kind, items: Vec<Item>, changes: &mut Vec<Change>) {
        let listed: BTreeSet<_> = items.iter().map(|item| item.name.clone()).collect();
        let known = match kind {
            Kind::MeshConfig => self.configs.keys().map(|name| NamespacedName::new("", name)).collect(),
            Kind::Pod => self.directory.names(),
            _ => kind.names(self.index.inputs()),
        };
        for name in known.into_iter().filter(|name| !listed.contains(name)) {
            self.gone(kind, name, changes);
        }
        for item in items {
            self.item(kind, item, changes);
        }
    }

    fn item(&mut self, kind: Kind, item: Item, changes: &mut Vec<Change>) {
        let Item { name, about, content } = item;
        if let Some(told) = kind.told() {
            self.abouts.insert((told, name.clone()), about);
        }
        match content {
            // It may have been something before.
            Content::Nothing => self.gone(kind, name, changes),
            Content::Unreadable(reason) => {
                tracing::error!(kind = kind.name(), %name, %reason, "an object isn't taken up; what it said before holds");
                let is_new = !self.index.inputs().peer_authentications.contains_key(&name);
                if kind == Kind::PeerAuthentication && is_new {
                    // Whatever it asks for, it isn't that its pods take plain text.
                    changes.push(Change::PeerAuthentication(name.clone(), Some(strict(&name))));
                }
            }
            Content::Namespace(namespace) => changes.push(Change::Namespace(name.name, Some(namespace))),
            Content::Service(service) => changes.push(Change::Service(name, Some(service))),
            Content::Gateway(gateway) => changes.push(Change::Gateway(name, Some(*gateway))),
            Content::Pod(content) => {
                let (pod, facts) = *content;
                self.moved += 1;
                self.directory.put(&name, Some(facts));
                changes.push(Change::Pod(name, pod));
            }
            Content::MeshConfig(config) => {
                self.configs.insert(name.name, *config);
                self.configure(changes);
            }
            Content::Rules(change) => changes.push(*change),
        }
    }

    fn gone(&mut self, kind: Kind, name: NamespacedName, changes: &mut Vec<Change>) {
        if let Some(told) = kind.told() {
            self.abouts.remove(&(told, name.clone()));
        }
        match kind {
            Kind::MeshConfig => {
                self.configs.remove(&name.name);
                self.configure(changes);
            }
            Kind::Pod => {
                self.moved += 1;
                self.directory.put(&name, None);
            }
            _ => {}
        }
        changes.extend(kind.gone(name));
    }

    /// One MeshConfig holds: of several the first by name, so that every replica takes the same.
    fn configure(&self, changes: &mut Vec<Change>) {
        let mut configs = self.configs.values();
        let config = configs.next();
        if let (Some(first), Some(second)) = (config, configs.next()) {
            tracing::error!(
                in_force = first.name,
                other = second.name,
                "there is more than one MeshConfig; one is in force"
            );
        }
        changes.push(Change::Settings(self.usual.clone().with_config(config)));
    }

    /// A waypoint has the address of the Service that its controller made for it, under its name.
    fn addresses(&self, changes: &mut Vec<Change>) {
        let inputs = self.index.inputs();
        let mut services: BTreeMap<NamespacedName, Option<IpAddr>> = BTreeMap::new();
        for change in &*changes {
            if let Change::Service(name, service) = change {
                services.insert(name.clone(), service.as_ref().and_then(address));
            }
        }
        for change in &mut *changes {
            if let Change::Gateway(name, Some(gateway)) = change {
                let known = || inputs.services.get(name).and_then(address);
                gateway.vip = services.get(name).copied().unwrap_or_else(known);
            }
        }
        let told: BTreeSet<_> = changes.iter().filter_map(Self::gateway).cloned().collect();
        for (name, address) in services.into_iter().filter(|(name, _)| !told.contains(name)) {
            let known = inputs.gateways.get(&name).filter(|gateway| gateway.vip != address);
            if let Some(mut gateway) = known.cloned() {
                gateway.vip = address;
                changes.push(Change::Gateway(name, Some(gateway)));
            }
        }
    }

    fn gateway(change: &Change) -> Option<&NamespacedName> {
        match change {
            Change::Gateway(name, _) => Some(name),
            _ => None,
        }
    }
}

/// Mutual TLS for a whole namespace.
fn strict(name: &NamespacedName) -> PeerAuthentication {
    let mtls = Some(MutualTls { mode: Mode::Strict });
    PeerAuthentication {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        created: None,
        spec: PeerAuthenticationSpec { mtls, ..PeerAuthenticationSpec::default() },
    }
}

/// The address of a controller's own Service. One that somebody else made under a waypoint's name isn't the waypoint's.
fn address(service: &Service) -> Option<IpAddr> {
    service.vips.first().copied().filter(|_| service.labels.contains_key(MANAGED))
}

/// Without what a later list says anew.
fn newest(events: Vec<Event>) -> Vec<Event> {
    let mut lists = BTreeMap::new();
    for (i, event) in events.iter().enumerate() {
        if let Event::All(kind, _) = event {
            lists.insert(*kind, i);
        }
    }
    let is_newest = |(i, event): &(usize, Event)| lists.get(&event.kind()).is_none_or(|list| i >= list);
    events.into_iter().enumerate().filter(is_newest).map(|(_, event)| event).collect()
}

// === impl Event ===

impl Event {
    fn kind(&self) -> Kind {
        match self {
            Self::All(kind, _) | Self::Applied(kind, _) | Self::Deleted(kind, _) => *kind,
        }
    }
}
