//! Which endpoint gets the next request. The endpoints are put in order when they change, so that a request looks at few.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use ambit_mesh::{
    View,
    view::{
        EndpointsVersion, Locality, Workload,
        destinations::{Balancer, Members, Nearness, Share},
    },
};

use super::{clusters::Cluster, hash, outliers::Host};
use crate::{balance::Endpoint, random::Random, shared::Shared};

/// The endpoints of one version.
#[derive(Debug)]
pub(super) struct Candidates {
    version: Option<EndpointsVersion>,
    members: Option<Arc<Members>>,
    /// Where the waypoint itself runs, if that matters.
    own: Option<Locality>,
    all: Vec<Candidate>,
    groups: Vec<Group>,
    /// The groups have shares; otherwise the nearest comes first.
    shared_out: bool,
}

#[derive(Debug)]
struct Candidate {
    endpoint: Endpoint,
    weight: u32,
    hash: u64,
}

/// Candidates of one rank, or of one share.
#[derive(Debug)]
struct Group {
    share: u32,
    /// Places in [`Candidates::all`].
    places: Vec<usize>,
    /// Sums of the weights up to and with each.
    sums: Vec<u64>,
}

/// What one choice looks at.
struct Choice<'a> {
    candidates: &'a Candidates,
    shared: &'a Shared,
    tried: &'a [SocketAddr],
    /// To compare with; nothing if nobody is left out.
    now: Option<u64>,
}

/// Draws for an endpoint that may be used, before all of them are looked at.
const DRAWS: usize = 4;

// === impl Cluster ===

impl Cluster {
    /// An endpoint, none of those tried.
    pub(super) fn pick(
        &self,
        members: Option<&Arc<Members>>,
        view: &View,
        shared: &Shared,
        tried: &[SocketAddr],
        hash: Option<u64>,
    ) -> Option<Endpoint> {
        let candidates = self.candidates(members, view, shared);
        let now = self.hosts.as_ref().and_then(|hosts| {
            let now = hosts.now_if_any()?;
            // Below a share of endpoints that work, all of them are used again.
            let least = usize::from(hosts.settings().least_percent);
            let works = |candidate: &&Candidate| !candidate.is_out(now);
            let panics = least > 0 && candidates.all.iter().filter(works).count() * 100 < candidates.all.len() * least;
            (!panics).then_some(now)
        });
        let choice = Choice { candidates: &candidates, shared, tried, now };
        choice.groups(&shared.random).find_map(|group| self.pick_in(group, &choice, hash))
    }

    fn pick_in(&self, group: &Group, choice: &Choice<'_>, hash: Option<u64>) -> Option<Endpoint> {
        let random = &choice.shared.random;
        let place = match (&self.treatment.balancer, hash) {
            (Balancer::Hash(_), Some(hash)) => choice.assigned(group, hash),
            (Balancer::RoundRobin, _) => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) as u64;
                choice.from(group, group.place(turn % group.total().max(1)))
            }
            (Balancer::Random | Balancer::Hash(_), _) => choice.draw(group, random),
            (Balancer::LeastRequest, _) => {
                let (first, second) = (choice.draw(group, random)?, choice.draw(group, random)?);
                // (a + 1) / weight of a < (b + 1) / weight of b, without a division.
                let load = |place: usize, other: usize| {
                    let of = |place: usize| &choice.candidates.all[place];
                    let load = choice.shared.loads.of(of(place).endpoint.load_key());
                    (u64::from(load) + 1) * u64::from(of(other).weight)
                };
                Some(if load(second, first) < load(first, second) { second } else { first })
            }
        };
        Some(choice.candidates.all[place?].endpoint.clone())
    }

    fn candidates(&self, members: Option<&Arc<Members>>, view: &View, shared: &Shared) -> Arc<Candidates> {
        // Without a measure of its own, the service's may need to know, too.
        let own = view.workload_by_ip(shared.config.address.ip());
        if let Some(candidates) = &*self.candidates.load() {
            let same_members = match (&candidates.members, members) {
                (None, None) => true,
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                _ => false,
            };
            let same_place = candidates.own.as_ref() == own.map(|own| &own.locality);
            if same_members && same_place && view.is_version(&self.key, candidates.version.as_ref()) {
                return Arc::clone(candidates);
            }
        }
        let candidates = Arc::new(self.put_in_order(members, view, own));
        self.candidates.store(Some(Arc::clone(&candidates)));
        candidates
    }

    fn put_in_order(&self, members: Option<&Arc<Members>>, view: &View, own: Option<&Arc<Workload>>) -> Candidates {
        let version = view.endpoints_version(&self.key);
        let locality = own.map(|own| own.locality.clone());
        let tiers = view.tiers_for(&self.key, || own.map(|own| &**own), self.port);
        let belongs = |workload: &Arc<Workload>| members.is_none_or(|members| members.contains(&workload.uid));
        let mut all: Vec<Candidate> = Vec::new();
        let mut ranks: Vec<usize> = Vec::new();
        let mut seen = HashSet::new();
        for (rank, tier) in tiers.iter().enumerate() {
            for drawn in tier.shuffled(0) {
                let Some(workload) = drawn.workload().filter(|workload| belongs(workload)) else { continue };
                // A tier has those before it, too.
                if !seen.insert(Arc::as_ptr(workload)) {
                    continue;
                }
                let Some(endpoint) = Endpoint::of(view, workload, &self.key, self.port) else { continue };
                let hash = hash::of_endpoint(endpoint.address);
                all.push(Candidate { endpoint, weight: drawn.capacity().max(1), hash });
                ranks.push(rank);
            }
        }
        if let Some(hosts) = &self.hosts {
            let known = hosts.of(all.iter().map(|candidate| &candidate.endpoint));
            all.iter_mut().zip(known).for_each(|(candidate, host)| candidate.endpoint.host = Some(host));
        }
        let (groups, shared_out) = self.groups(&all, &ranks, locality.as_ref());
        Candidates { version, members: members.cloned(), own: locality, all, groups, shared_out }
    }

    fn groups(&self, all: &[Candidate], ranks: &[usize], own: Option<&Locality>) -> (Vec<Group>, bool) {
        let ranked = |rank: &dyn Fn(usize) -> usize| {
            let most = (0..all.len()).map(rank).max().unwrap_or_default();
            let of = |wanted: usize| Group::of(all, (0..all.len()).filter(|place| rank(*place) == wanted), 0);
            (0..=most).map(of).filter(|group| !group.places.is_empty()).collect::<Vec<_>>()
        };
        let place = |place: usize| &all[place].endpoint.workload.locality;
        match (&self.treatment.nearness, own.filter(|own| !own.region.is_empty())) {
            (None, _) => (ranked(&|place| ranks[place]), false),
            (Some(Nearness::Off), _) | (Some(_), None) => (ranked(&|_| 0), false),
            (Some(Nearness::Failover { regions }), Some(own)) => {
                (ranked(&|at| Nearness::rank(regions, own, place(at))), false)
            }
            (Some(Nearness::Distribute { from }), Some(own)) => {
                let Some((_, shares)) = from.iter().find(|(from, _)| from.matches(own)) else {
                    return (ranked(&|_| 0), false);
                };
                let first = |at: usize| shares.iter().position(|share| share.to.matches(place(at)));
                let of = |(index, share): (usize, &Share)| {
                    Group::of(all, (0..all.len()).filter(|at| first(*at) == Some(index)), share.weight)
                };
                let groups = shares.iter().enumerate().map(of).filter(|group| !group.places.is_empty());
                (groups.collect(), true)
            }
        }
    }
}

// === impl Candidate ===

impl Candidate {
    fn is_out(&self, now: u64) -> bool {
        self.endpoint.host.as_deref().is_some_and(|host: &Host| host.is_out(now))
    }
}

// === impl Group ===

impl Group {
    fn of(all: &[Candidate], places: impl Iterator<Item = usize>, share: u32) -> Self {
        let places: Vec<usize> = places.collect();
        let mut sum = 0;
        let weights = places.iter().map(|place| {
            sum += u64::from(all[*place].weight);
            sum
        });
        let sums = weights.collect();
        Self { share, places, sums }
    }

    fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or_default()
    }

    /// Index of the one that this number, below the total, falls on.
    fn place(&self, drawn: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= drawn)
    }
}

// === impl Choice ===

impl<'a> Choice<'a> {
    /// The groups in the order in which they are tried.
    fn groups(&self, random: &Random) -> impl Iterator<Item = &'a Group> {
        let groups = &self.candidates.groups;
        let mut first = 0;
        if self.candidates.shared_out {
            let total: usize = groups.iter().map(|group| group.share as usize).sum();
            let mut left = random.below(total);
            first = groups
                .iter()
                .position(|group| {
                    let hit = left < group.share as usize;
                    left = left.saturating_sub(group.share as usize);
                    hit
                })
                .unwrap_or_default();
        }
        let (before, after) = groups.split_at(first);
        after.iter().chain(before)
    }

    fn is_usable(&self, place: usize) -> bool {
        let candidate = &self.candidates.all[place];
        !self.tried.contains(&candidate.endpoint.address) && !self.now.is_some_and(|now| candidate.is_out(now))
    }

    /// One that may be used, as likely as its weight says.
    fn draw(&self, group: &Group, random: &Random) -> Option<usize> {
        let total = usize::try_from(group.total()).unwrap_or(usize::MAX);
        let mut index = 0;
        for _ in 0..DRAWS {
            index = group.place(random.below(total) as u64);
            let place = *group.places.get(index)?;
            if self.is_usable(place) {
                return Some(place);
            }
        }
        self.from(group, index)
    }

    /// The first that may be used from this index on.
    fn from(&self, group: &Group, index: usize) -> Option<usize> {
        let (before, after) = group.places.split_at(index.min(group.places.len()));
        after.iter().chain(before).copied().find(|place| self.is_usable(*place))
    }

    /// The one that a request is assigned to.
    fn assigned(&self, group: &Group, hash: u64) -> Option<usize> {
        let usable = group.places.iter().copied().filter(|place| self.is_usable(*place));
        let score = |place: usize| {
            let candidate = &self.candidates.all[place];
            hash::score(hash, candidate.hash, candidate.weight)
        };
        usable.max_by(|one, other| score(*one).total_cmp(&score(*other)))
    }
}
