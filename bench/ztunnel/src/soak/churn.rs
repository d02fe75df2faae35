//! What the mesh is in each second, and what follows for every connection.

use std::{
    collections::VecDeque,
    fmt::Write,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::configuration::{CLIENT_NAMESPACE, CLIENT_NODE, SERVER_NAMESPACE, SERVER_NODE, SERVICE};

/// A port that policies name, and one that they don't.
pub(crate) const NAMED_PORT: u16 = 7001;
pub(crate) const OTHER_PORT: u16 = 7000;
pub(crate) const PORTS: [u16; 2] = [OTHER_PORT, NAMED_PORT];
/// Workloads that nobody calls: each comes, changes and goes.
const PHANTOMS: u64 = 16;
/// Different labels of a workload. They are labels of metrics as well, so they come again.
const REVISIONS: u64 = 8;
/// Generations kept to judge by; only the last ones can still be met.
const REMEMBERED: usize = 64;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Alice,
    Bob,
    /// A pod that is not in the mesh.
    Outside,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Left,
    Right,
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Pod(Server),
    /// The service; one of the servers is its only endpoint.
    Service,
}

/// The mesh in one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct World {
    generation: u64,
    endpoint: Server,
    /// `alice` may not call [`NAMED_PORT`].
    alice_denied: bool,
    /// Nor may who comes from `bob`'s address.
    bob_denied: bool,
    /// Only `bob` may call the right server.
    right_is_bobs: bool,
    /// Nobody may come without an identity.
    plaintext_denied: bool,
}

/// When the world changed.
pub(crate) struct Journal {
    entries: Mutex<VecDeque<Entry>>,
    grace: Duration,
}

struct Entry {
    world: World,
    began: Instant,
    /// From then on everybody must know it.
    settled: Option<Instant>,
}

// === impl Client ===

impl Client {
    pub(crate) const ALL: [Self; 3] = [Self::Alice, Self::Bob, Self::Outside];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Alice => "alice",
            Self::Bob => "bob",
            Self::Outside => "outside",
        }
    }

    pub(crate) fn ip(self) -> Ipv4Addr {
        match self {
            Self::Alice => Ipv4Addr::new(10, 244, 1, 2),
            Self::Bob => Ipv4Addr::new(10, 244, 1, 3),
            Self::Outside => Ipv4Addr::new(10, 244, 1, 9),
        }
    }

    /// What it calls. Only who is in the mesh can call services.
    pub(crate) fn targets(self) -> &'static [Target] {
        let all: &[Target] = &[Target::Pod(Server::Left), Target::Pod(Server::Right), Target::Service];
        if self == Self::Outside { &all[..2] } else { all }
    }
}

// === impl Server ===

impl Server {
    pub(crate) const ALL: [Self; 2] = [Self::Left, Self::Right];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    pub(crate) fn ip(self) -> Ipv4Addr {
        match self {
            Self::Left => Ipv4Addr::new(10, 244, 2, 2),
            Self::Right => Ipv4Addr::new(10, 244, 2, 3),
        }
    }

    /// What its answers begin with.
    pub(crate) fn letter(self) -> u8 {
        self.name().as_bytes()[0]
    }
}

// === impl Target ===

impl Target {
    pub(crate) fn ip(self) -> Ipv4Addr {
        match self {
            Self::Pod(server) => server.ip(),
            Self::Service => SERVICE,
        }
    }
}

// === impl World ===

impl World {
    /// The mesh in this second. One policy changes per second, and the service's endpoint in every third.
    pub(crate) fn at(generation: u64) -> Self {
        let flipped = |which: u64| (generation + 3 - which) / 4 % 2 == 1;
        Self {
            generation,
            endpoint: Server::ALL[usize::from(generation / 3 % 2 == 1)],
            alice_denied: flipped(0),
            bob_denied: flipped(1),
            right_is_bobs: flipped(2),
            plaintext_denied: flipped(3),
        }
    }

    pub(crate) fn generation(self) -> u64 {
        self.generation
    }

    /// Who is reached by this target.
    fn reached(self, target: Target) -> Server {
        match target {
            Target::Pod(server) => server,
            Target::Service => self.endpoint,
        }
    }

    fn allows(self, client: Client, server: Server, port: u16) -> bool {
        let named = port == NAMED_PORT;
        let bobs = server == Server::Right && self.right_is_bobs;
        match client {
            Client::Alice => !(bobs || named && self.alice_denied),
            Client::Bob => !(named && self.bob_denied),
            Client::Outside => !bobs && !self.plaintext_denied,
        }
    }

    /// In ztunnel's local form (`spec/ztunnel.md` 10).
    pub(crate) fn text(self) -> String {
        let revision = self.generation % REVISIONS;
        let mut text = String::from("workloads:\n");
        for client in [Client::Alice, Client::Bob] {
            let name = client.name();
            workload(&mut text, [name, CLIENT_NAMESPACE, CLIENT_NODE, "HBONE"], client.ip(), revision, "{}", "");
        }
        for server in Server::ALL {
            let services = if server == self.endpoint { endpoint_of("server") } else { "{}".to_owned() };
            let selected = if server == Server::Right && self.right_is_bobs { "servers/right-is-bobs" } else { "" };
            let names = [server.name(), SERVER_NAMESPACE, SERVER_NODE, "HBONE"];
            workload(&mut text, names, server.ip(), revision, &services, selected);
        }
        for number in 0..PHANTOMS {
            let visits = (self.generation + PHANTOMS - number) / PHANTOMS;
            let (ip, revision) = match visits % 4 {
                0 => continue,
                1 => (1, 0),
                2 => (2, 0),
                _ => (2, 1),
            };
            let ip = Ipv4Addr::new(10, 246, ip, u8::try_from(number).unwrap_or_default());
            let name = format!("phantom-{number}");
            let names = [name.as_str(), SERVER_NAMESPACE, SERVER_NODE, "TCP"];
            workload(&mut text, names, ip, revision, &endpoint_of("phantoms"), "");
        }
        text.push_str("services:\n");
        for (name, vip) in [("server", SERVICE), ("phantoms", Ipv4Addr::new(10, 96, 7, 9))] {
            let _infallible = writeln!(
                text,
                "- {{name: {name}, namespace: {SERVER_NAMESPACE}, hostname: {name}.{SERVER_NAMESPACE}.svc.cluster.local, \
                 vips: [\"/{vip}\"], ports: {{{OTHER_PORT}: {OTHER_PORT}, {NAMED_PORT}: {NAMED_PORT}}}}}"
            );
        }
        text.push_str("policies:\n");
        for (enforced, name, scope, action, rules) in self.policies() {
            if enforced {
                let _infallible = writeln!(
                    text,
                    "- {{name: {name}, namespace: {SERVER_NAMESPACE}, scope: {scope}, action: {action}, dryRun: false, \
                     rules: {rules}}}"
                );
            }
        }
        text
    }

    fn policies(self) -> [(bool, &'static str, &'static str, &'static str, String); 5] {
        let alice = "principals: [!Exact cluster.local/ns/clients/sa/alice]";
        let bob = "principals: [!Exact cluster.local/ns/clients/sa/bob]";
        let bobs_ip = format!("sourceIps: [\"{}/32\"]", Client::Bob.ip());
        let plaintext = "notPrincipals: [!Presence []]";
        let rule = |of: &str| format!("[[[{{{of}}}]]]");
        let on_named = |who: &str| format!("[[[{{{who}}}], [{{destinationPorts: [{NAMED_PORT}]}}]]]");
        [
            (self.alice_denied, "alice-denied", "Namespace", "Deny", on_named(alice)),
            (self.bob_denied, "bob-denied", "Namespace", "Deny", on_named(&bobs_ip)),
            (self.right_is_bobs, "right-is-bobs", "WorkloadSelector", "Allow", rule(bob)),
            (self.plaintext_denied, "plaintext-denied", "Namespace", "Deny", rule(plaintext)),
            // So that the list isn't empty, and something is on trial.
            (true, "on-trial", "Namespace", "Deny", rule("destinationPorts: [1]")),
        ]
    }
}

fn endpoint_of(service: &str) -> String {
    format!(
        "{{\"{SERVER_NAMESPACE}/{service}.{SERVER_NAMESPACE}.svc.cluster.local\": \
         {{{OTHER_PORT}: {OTHER_PORT}, {NAMED_PORT}: {NAMED_PORT}}}}}"
    )
}

fn workload(text: &mut String, names: [&str; 4], ip: Ipv4Addr, revision: u64, services: &str, selected: &str) {
    let [name, namespace, node, protocol] = names;
    let _infallible = writeln!(
        text,
        "- {{uid: \"Kubernetes//Pod/{namespace}/{name}\", name: {name}, namespace: {namespace}, \
         trustDomain: cluster.local, serviceAccount: {name}, workloadIps: [\"{ip}\"], protocol: {protocol}, \
         node: {node}, network: \"\", clusterId: Kubernetes, workloadName: {name}, workloadType: deployment, \
         canonicalName: {name}, canonicalRevision: v{revision}, services: {services}, \
         authorizationPolicies: [{selected}]}}"
    );
}

// === impl Journal ===

impl Journal {
    /// Begins with this world, which everybody knows.
    pub(crate) fn new(world: World, grace: Duration) -> Self {
        let now = Instant::now();
        Self { entries: Mutex::new(VecDeque::from([Entry { world, began: now, settled: Some(now) }])), grace }
    }

    /// Changes the world by `apply`.
    pub(crate) fn change<E>(&self, world: World, apply: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        {
            let mut entries = self.lock();
            entries.push_back(Entry { world, began: Instant::now(), settled: None });
            if entries.len() > REMEMBERED {
                entries.pop_front();
            }
        }
        apply()?;
        if let Some(last) = self.lock().back_mut() {
            last.settled = Some(Instant::now() + self.grace);
        }
        Ok(())
    }

    /// The worlds that somebody may have gone by at any time between these, and since when each can be known.
    fn worlds(&self, from: Instant, to: Instant) -> Vec<(World, Instant)> {
        let entries = self.lock();
        let left = entries.iter().skip(1).map(|next| next.settled).chain([None]);
        let possible = entries.iter().zip(left);
        let possible = possible.filter(|(entry, left)| entry.began <= to && left.is_none_or(|settled| settled >= from));
        possible.map(|(entry, _)| (entry.world, entry.began)).collect()
    }

    /// Whether what came of an exchange between these times can be right: the server that answered, or nothing where it
    /// was refused. Who chooses the endpoint and who decides may each know the one world or the next.
    pub(crate) fn explains(
        &self,
        (client, target, port): (Client, Target, u16),
        answer: Option<Server>,
        (from, to): (Instant, Instant),
    ) -> bool {
        let worlds = self.worlds(from, to);
        let mut pairs = worlds.iter().flat_map(|(routes, _)| worlds.iter().map(move |(decides, _)| (routes, decides)));
        pairs.any(|(routes, decides)| {
            let server = routes.reached(target);
            answer == decides.allows(client, server, port).then_some(server)
        })
    }

    /// Whether a connection to this server may be open at this time.
    pub(crate) fn may_live(&self, client: Client, server: Server, port: u16, at: Instant) -> bool {
        self.worlds(at, at).iter().any(|(world, _)| world.allows(client, server, port))
    }

    /// Since when a connection may have been cut at this time; nothing if it may not.
    pub(crate) fn denied_since(&self, client: Client, server: Server, port: u16, at: Instant) -> Option<Instant> {
        let mut denying = self.worlds(at, at).into_iter().filter(|(world, _)| !world.allows(client, server, port));
        denying.next_back().map(|(_, began)| began)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_a_policy_and_a_workload_change_and_all_comes_round() {
        for generation in 0..200 {
            let (old, new) = (World::at(generation), World::at(generation + 1));
            let changed = [
                old.alice_denied != new.alice_denied,
                old.bob_denied != new.bob_denied,
                old.right_is_bobs != new.right_is_bobs,
                old.plaintext_denied != new.plaintext_denied,
            ];
            assert_eq!(changed.iter().filter(|changed| **changed).count(), 1, "{old:?} {new:?}");
            let loaded = ambit_xds::local::load_text("mesh.yaml", &new.text()).expect("a mesh");
            assert!(!loaded.is_empty());
            let workloads = |world: World| {
                world.text().lines().filter(|line| line.contains("phantom-")).map(str::to_owned).collect::<Vec<_>>()
            };
            assert_ne!(workloads(old), workloads(new), "generation {generation}");
        }
        assert!((0..8).any(|generation| World::at(generation).allows(Client::Alice, Server::Left, NAMED_PORT)));
        assert!((0..8).any(|generation| !World::at(generation).allows(Client::Alice, Server::Left, NAMED_PORT)));
        assert!((0..64).all(|generation| World::at(generation).allows(Client::Bob, Server::Right, OTHER_PORT)));
    }

    #[test]
    fn either_verdict_is_right_only_around_a_change() {
        let grace = Duration::from_millis(50);
        let denying = (1..).map(World::at).find(|world| world.alice_denied).expect("one that denies");
        let journal = Journal::new(World { alice_denied: false, ..denying }, grace);
        let what = (Client::Alice, Target::Pod(Server::Left), NAMED_PORT);
        let before = Instant::now();
        assert!(journal.explains(what, Some(Server::Left), (before, before)));
        assert!(!journal.explains(what, None, (before, before)));
        assert!(!journal.explains(what, Some(Server::Right), (before, before)));
        journal.change(denying, || Ok::<_, ()>(())).expect("applied");
        let around = Instant::now();
        assert!(journal.explains(what, Some(Server::Left), (around, around)));
        assert!(journal.explains(what, None, (around, around)));
        let after = around + 2 * grace;
        assert!(!journal.explains(what, Some(Server::Left), (after, after)));
        assert!(journal.explains(what, None, (after, after)));
        assert!(journal.explains(what, Some(Server::Left), (before, after)), "it began before");
        assert!(!journal.may_live(what.0, Server::Left, what.2, after));
        assert!(journal.denied_since(what.0, Server::Left, what.2, after).is_some());
        assert!(journal.denied_since(Client::Bob, Server::Left, OTHER_PORT, after).is_none());
    }
}
