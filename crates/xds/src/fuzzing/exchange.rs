//! A server, a client and the streams between them, without IO.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Resource,
    channel::Nack,
    client::fuzzing::{Demand, Session},
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
    server::{Resources, SubscriptionStream},
};

/// Content that the client refuses begins like this.
const REFUSED: u8 = 0xff;
/// Messages after which the two must have come to rest, for each resource and name there is.
const MAX_MESSAGES: usize = 16;

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// The server has a resource, an address or a policy, of this name and content.
    Put(bool, String, Vec<u8>),
    /// It has it no more.
    Remove(bool, String),
    /// The client wants an address.
    Demand(String),
    /// The client reads a response.
    Respond,
    /// The server reads a request.
    Request,
    /// The stream breaks, and another one is opened.
    Reconnect,
}

struct World {
    on_demand: bool,
    resources: Arc<Resources>,
    /// What the server has, by type and name.
    there: BTreeMap<(&'static str, String), Vec<u8>>,
    stream: SubscriptionStream,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
    session: Session,
    demanded: BTreeSet<String>,
    /// What the client was told, the same way.
    told: BTreeMap<(&'static str, String), Vec<u8>>,
}

/// Lets things happen, then lets the two come to rest: the client knows what the server has, as far as it wants to.
///
/// # Panics
/// When it doesn't.
pub fn exchange(on_demand: bool, steps: impl IntoIterator<Item = Step>) {
    let mut world = World::new(on_demand);
    for step in steps {
        world.happens(step);
    }
    world.settle();
    // What wasn't there when it was asked for isn't waited for.
    world.demanded.clone().into_iter().for_each(|name| world.happens(Step::Demand(name)));
    world.settle();
    world.agree();
    // Another stream brings nothing that wasn't refused before.
    world.happens(Step::Reconnect);
    world.settle();
    world.agree();
}

// === impl World ===

impl World {
    fn new(on_demand: bool) -> Self {
        let session = Session::new(
            Node::default(),
            [(ADDRESS_TYPE.to_owned(), on_demand), (AUTHORIZATION_TYPE.to_owned(), false)],
        );
        Self {
            on_demand,
            resources: Resources::new(),
            there: BTreeMap::new(),
            stream: SubscriptionStream::new(&Node::default()),
            requests: session.open().into(),
            responses: VecDeque::new(),
            session,
            demanded: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    fn happens(&mut self, step: Step) {
        let type_of = |address| if address { ADDRESS_TYPE } else { AUTHORIZATION_TYPE };
        let change =
            |type_url: &str, resources, removed| DeltaResponse { type_url: type_url.into(), resources, removed };
        match step {
            Step::Put(address, name, value) => {
                let resource = Resource { name: name.clone(), version: String::new(), value: value.clone() };
                self.resources.apply(&[change(type_of(address), vec![resource], Vec::new())]);
                self.there.insert((type_of(address), name), value);
            }
            Step::Remove(address, name) => {
                self.resources.apply(&[change(type_of(address), Vec::new(), vec![name.clone()])]);
                self.there.remove(&(type_of(address), name));
            }
            Step::Demand(name) => {
                if let Demand::Ask(requests) = self.session.demand(ADDRESS_TYPE, &name, false) {
                    self.requests.extend(requests);
                }
                self.demanded.insert(name);
            }
            Step::Respond => self.respond(),
            Step::Request => {
                if let Some(request) = self.requests.pop_front() {
                    self.stream.request(request).expect("our own client's requests are sound");
                }
            }
            Step::Reconnect => {
                self.stream = SubscriptionStream::new(&Node::default());
                self.requests = self.session.open().into();
                self.responses.clear();
            }
        }
        while self.stream.is_due(&self.resources)
            && let Some(response) = self.stream.next_response(&self.resources).expect("nothing is too much")
        {
            self.responses.push_back(response);
        }
    }

    fn respond(&mut self) {
        let Some(response) = self.responses.pop_front() else { return };
        let received = self.session.read(response);
        let type_url = if received.delta.type_url == ADDRESS_TYPE { ADDRESS_TYPE } else { AUTHORIZATION_TYPE };
        for name in &received.delta.removed {
            self.told.remove(&(type_url, name.clone()));
        }
        let mut rejected = Vec::new();
        for resource in &received.delta.resources {
            self.told.insert((type_url, resource.name.clone()), resource.value.clone());
            if resource.value.first() == Some(&REFUSED) {
                rejected.push((resource.name.clone(), "no".to_owned()));
            }
        }
        let verdict = if rejected.is_empty() { Ok(()) } else { Err(Nack { rejected }) };
        let outcome = self.session.applied(received, verdict);
        self.requests.extend([outcome.answer].into_iter().chain(outcome.unsubscribe));
    }

    fn settle(&mut self) {
        let most = MAX_MESSAGES * (self.there.len() + self.told.len() + self.demanded.len() + self.requests.len() + 8);
        for _ in 0..most {
            if self.requests.is_empty() && self.responses.is_empty() {
                return;
            }
            self.happens(Step::Request);
            self.happens(Step::Respond);
        }
        panic!("they never stop talking");
    }

    fn agree(&self) {
        for ((type_url, name), value) in &self.there {
            let wanted = *type_url != ADDRESS_TYPE || !self.on_demand || self.demanded.contains(name);
            let told = self.told.get(&(*type_url, name.clone()));
            assert!(!wanted || told == Some(value), "`{name}` is `{value:?}`, the client was told {told:?}");
        }
        for (key, value) in &self.told {
            assert_eq!(self.there.get(key), Some(value), "{key:?} isn't what the client was told");
        }
        // The first of each type says what is held.
        for request in self.session.open().into_iter().filter(|request| request.node.is_some()) {
            let url = request.type_url.as_str();
            let told: Vec<_> = self.told.keys().filter(|(of, _)| *of == url).map(|(_, name)| name).collect();
            assert!(request.initial_resource_versions.keys().eq(told), "it holds other names than it was told");
        }
    }
}
