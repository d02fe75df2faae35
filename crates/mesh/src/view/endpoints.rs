//! The endpoints of one service: all of them, and for a client the nearest.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use super::{
    model::{Balancing, Mode, Scope, Service, Workload},
    ranking::{ANY_PORT, Bucket, Entry, Member, Move, Node, work},
};

/// Preferences that one service may have: each scope once.
pub(super) const MAX_PREFERENCES: usize = 6;
/// Ranks that endpoints can have: every number of preferences, in the client's network and out of it.
const MAX_TIERS: usize = 2 * (MAX_PREFERENCES + 1);
/// Slots that are copied when one of them changes.
const CHUNK: usize = 64;

type Chunk = [Option<Arc<Workload>>; CHUNK];

/// One version of a service's endpoints. Versions share what they have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    chunks: Vec<Arc<Chunk>>,
    balancing: Balancing,
    /// By all preferences.
    ranked: Arc<Node>,
    /// By all but the first, if that is the network: a mismatch in it doesn't end the ranking.
    anywhere: Option<Arc<Node>>,
    /// In the order of their uids, once somebody asked.
    sorted: OnceLock<Box<[Arc<Workload>]>>,
}

/// Which slot belongs to whom. Only the one who changes endpoints has to know.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: HashMap<Arc<str>, u32>,
    free: Vec<u32>,
}

/// The endpoints of a service that a client may use, nearest first. Usually only the first tier matters; the others are
/// for when all of it has failed.
#[derive(Debug)]
pub struct Tiers<'v> {
    endpoints: Option<&'v Endpoints>,
    buckets: [Option<&'v Bucket>; MAX_TIERS],
    count: usize,
}

/// Endpoints of one rank. There is at least one.
#[derive(Clone, Copy, Debug)]
pub struct Tier<'v> {
    endpoints: &'v Endpoints,
    bucket: &'v Bucket,
}

/// An endpoint that was drawn. Of the endpoint itself nothing has been looked at: with many of them that is what costs.
#[derive(Clone, Copy, Debug)]
pub struct Drawn<'v> {
    endpoints: &'v Endpoints,
    entry: Entry,
}

// === impl Endpoints ===

impl Endpoints {
    pub(super) fn all(&self) -> &[Arc<Workload>] {
        self.sorted.get_or_init(|| {
            let mut all: Vec<_> = self.chunks.iter().flat_map(|chunk| chunk.iter().flatten()).cloned().collect();
            all.sort_unstable_by(|one, other| one.uid.cmp(&other.uid));
            all.into()
        })
    }

    /// Takes changes in: each workload as it is now, or nothing if it is no endpoint any more.
    pub(super) fn apply(
        &mut self,
        slots: &mut Slots,
        changes: Vec<(Arc<str>, Option<Arc<Workload>>)>,
        service: Option<&Service>,
        network: &str,
    ) {
        self.sorted = OnceLock::new();
        let place = |workload: &Arc<Workload>| Member::of(workload, service?, network);
        let mut moves = Vec::new();
        for (uid, now) in changes {
            let Some(slot) = slots.of(&uid, now.is_some()) else { continue };
            let now_at = now.as_ref().and_then(place);
            let before = self.put(slot, now);
            let before_at = before.as_ref().and_then(place);
            if before_at != now_at {
                moves.extend(before_at.map(|member| Move { slot, member, enters: false }));
                moves.extend(now_at.map(|member| Move { slot, member, enters: true }));
            }
        }
        self.rank(moves);
    }

    /// Ranks all endpoints anew, for a service that isn't what it was.
    pub(super) fn rank_all(&mut self, service: Option<&Service>, network: &str) {
        self.ranked = Arc::default();
        self.balancing = service.map(|service| service.balancing.clone()).unwrap_or_default();
        self.anywhere = (self.balancing.preferences.first() == Some(&Scope::Network)).then(Arc::default);
        let Some(service) = service else { return };
        let slots = self.chunks.iter().flat_map(|chunk| chunk.iter()).zip(0..);
        let moves = slots.filter_map(|(workload, slot)| {
            let member = Member::of(workload.as_ref()?, service, network)?;
            Some(Move { slot, member, enters: true })
        });
        self.rank(moves.collect());
    }

    fn rank(&mut self, moves: Vec<Move>) {
        self.ranked.apply(&moves);
        if let Some(anywhere) = &mut self.anywhere {
            let moves = moves.into_iter().map(|change| Move { member: change.member.anywhere(), ..change });
            anywhere.apply(&moves.collect::<Vec<_>>());
        }
    }

    fn put(&mut self, slot: u32, workload: Option<Arc<Workload>>) -> Option<Arc<Workload>> {
        let slot = slot as usize;
        while self.chunks.len() <= slot / CHUNK {
            self.chunks.push(Arc::new([const { None }; CHUNK]));
        }
        std::mem::replace(&mut Arc::make_mut(&mut self.chunks[slot / CHUNK])[slot % CHUNK], workload)
    }

    fn get(&self, slot: u32) -> Option<&Arc<Workload>> {
        self.chunks.get(slot as usize / CHUNK)?[slot as usize % CHUNK].as_ref()
    }

    /// True if it matters to the tiers who the client is.
    pub(super) fn are_ranked(&self) -> bool {
        !matches!(self.balancing.mode, Mode::Unspecified | Mode::Passthrough)
    }

    /// The tiers for a client; nothing is known of one that isn't given.
    pub(super) fn tiers(&self, client: Option<&Workload>, port: Option<u16>) -> Tiers<'_> {
        let mut tiers = Tiers { endpoints: Some(self), ..Tiers::none() };
        let port = port.unwrap_or(ANY_PORT);
        let preferences = self.balancing.preferences.as_slice();
        match self.balancing.mode {
            Mode::Unspecified | Mode::Passthrough => tiers.push(self.ranked.bucket(port)),
            Mode::Strict => {
                let nearest = descend(&self.ranked, preferences, client).last();
                tiers.push(nearest.filter(|(depth, _)| *depth == preferences.len()).and_then(|(_, n)| n.bucket(port)));
            }
            Mode::Failover => {
                // With the network as first preference, an endpoint of another one isn't ranked by this tree.
                let least = usize::from(self.anywhere.is_some());
                tiers.push_path(descend(&self.ranked, preferences, client), least, port);
                if let Some(anywhere) = &self.anywhere {
                    tiers.push_path(descend(anywhere, preferences.get(1..).unwrap_or_default(), client), 0, port);
                }
            }
        }
        tiers
    }
}

/// The nodes from the root to the one that matches the client in most preferences, with their depths.
fn descend<'v, 'c>(
    root: &'v Node,
    preferences: &'c [Scope],
    client: Option<&'c Workload>,
) -> impl Iterator<Item = (usize, &'v Node)> + use<'v, 'c> {
    let mut next = Some((0, root));
    std::iter::from_fn(move || {
        let (depth, node) = next?;
        work::visit(1);
        let value = || Some(client?.scope(*preferences.get(depth)?));
        next = value().and_then(|value| Some((depth + 1, node.child(value)?)));
        Some((depth, node))
    })
}

// === impl Slots ===

impl Slots {
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// The slot of a workload; a new one if it has none and is to have one, and none any more if it isn't to.
    fn of(&mut self, uid: &Arc<str>, stays: bool) -> Option<u32> {
        if !stays {
            let slot = self.taken.remove(uid)?;
            self.free.push(slot);
            return Some(slot);
        }
        if let Some(slot) = self.taken.get(uid) {
            return Some(*slot);
        }
        // INVARIANT: there are fewer workloads than `MAX_ADDRESSES`, so their number fits.
        let slot = self.free.pop().unwrap_or(self.taken.len() as u32);
        self.taken.insert(Arc::clone(uid), slot);
        Some(slot)
    }
}

// === impl Tiers ===

impl<'v> Tiers<'v> {
    pub(super) fn none() -> Self {
        Self { endpoints: None, buckets: [None; MAX_TIERS], count: 0 }
    }

    /// No endpoint can be used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The tiers, nearest first. Each but the first has those of the tiers before it too.
    pub fn iter(&self) -> impl Iterator<Item = Tier<'v>> {
        let endpoints = self.endpoints;
        self.buckets.iter().flatten().filter_map(move |bucket| Some(Tier { endpoints: endpoints?, bucket }))
    }

    fn push(&mut self, bucket: Option<&'v Bucket>) {
        // One that adds nobody to the last is no tier of its own.
        let last = self.count.checked_sub(1).and_then(|last| self.buckets[last]);
        let Some(bucket) = bucket.filter(|bucket| last.is_none_or(|last| last.len() != bucket.len())) else { return };
        if let Some(free) = self.buckets.get_mut(self.count) {
            *free = Some(bucket);
            self.count += 1;
        }
    }

    /// The nodes of a path from its end up to a depth.
    fn push_path(&mut self, path: impl Iterator<Item = (usize, &'v Node)>, least: usize, port: u16) {
        let mut nodes = [None; MAX_PREFERENCES + 1];
        for (depth, node) in path.filter(|(depth, _)| *depth >= least) {
            if let Some(place) = nodes.get_mut(depth) {
                *place = Some(node);
            }
        }
        nodes.into_iter().rev().flatten().for_each(|node| self.push(node.bucket(port)));
    }
}

// === impl Tier ===

impl<'v> Tier<'v> {
    /// How many endpoints there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.bucket.len()
    }

    /// One of them, each as likely as its capacity says.
    #[must_use]
    pub fn draw(&self, random: u64) -> Option<Drawn<'v>> {
        Some(Drawn { endpoints: self.endpoints, entry: self.bucket.draw(random)? })
    }

    /// All of them, from a random one on.
    pub fn shuffled(&self, random: u64) -> impl Iterator<Item = Drawn<'v>> {
        let endpoints = self.endpoints;
        self.bucket.all_from(random).map(|entry| Drawn { endpoints, entry })
    }
}

// === impl Drawn ===

impl<'v> Drawn<'v> {
    /// The endpoint. There is one for everything that is drawn.
    #[must_use]
    pub fn workload(&self) -> Option<&'v Arc<Workload>> {
        self.endpoints.get(self.entry.slot)
    }

    /// Its [`Workload::capacity`].
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.entry.weight
    }

    /// Its [`Workload::load_key`].
    #[must_use]
    pub fn load_key(&self) -> u32 {
        self.entry.load_key
    }
}
