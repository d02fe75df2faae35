//! Workloads that say an address is theirs, best first: pods, then others; of each those in the mesh first. A pod's address
//! is given to another pod before the old one's object is gone, so the newest pod comes first; of others the oldest.

use std::{cmp::Reverse, sync::Arc};

use super::{model::Workload, shards::Shards};

/// Claims that are kept in one list; a longer one is copied in parts.
const FEW: usize = 32;
/// Claims in one part. A change copies one of them.
const PART: usize = 128;

/// The claims to one address; nearly always one.
#[derive(Clone, Debug)]
pub(super) enum Claims {
    One(Arc<Workload>),
    Few(Vec<Arc<Workload>>),
    Many(Box<Many>),
}

/// Claims next to each other, in order.
type Part = Vec<(Place, Arc<Workload>)>;

/// Cheap to copy and then change, as snapshots need it.
#[derive(Clone, Debug)]
pub(super) struct Many {
    /// In order, none empty.
    parts: Vec<Arc<Part>>,
    /// Where each stands, by uid.
    places: Shards<Arc<str>, Place>,
    /// Turns of the next pod, and of the next other one.
    next: (i64, i64),
}

/// Where a claim stands: smallest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Pod, HBONE.
    class: Reverse<(bool, bool)>,
    turn: i64,
}

// === impl Claims ===

impl Claims {
    /// Whose the address is.
    pub(super) fn owner(&self) -> &Arc<Workload> {
        match self {
            Self::One(workload) => workload,
            // INVARIANT: never fewer than two.
            Self::Few(workloads) => &workloads[0],
            Self::Many(many) => &many.parts[0][0].1,
        }
    }

    /// Enters a claim, or renews it.
    pub(super) fn put(&mut self, now: &Arc<Workload>) {
        let mut all = match self {
            Self::Many(many) => return many.put(now),
            Self::One(workload) if workload.uid == now.uid => return *workload = Arc::clone(now),
            Self::One(workload) => vec![Arc::clone(workload)],
            Self::Few(workloads) => std::mem::take(workloads),
        };
        match all.iter_mut().find(|workload| workload.uid == now.uid) {
            Some(place) => *place = Arc::clone(now),
            None if now.is_pod() => all.insert(0, Arc::clone(now)),
            None => all.push(Arc::clone(now)),
        }
        all.sort_by_key(|workload| class(workload));
        *self = if all.len() > FEW { Self::Many(Box::new(Many::new(all))) } else { Self::Few(all) };
    }

    /// False if nobody is left.
    pub(super) fn remove(&mut self, uid: &str) -> bool {
        let mut all = match self {
            Self::One(workload) => return *workload.uid != *uid,
            Self::Few(workloads) => std::mem::take(workloads),
            Self::Many(many) => {
                many.remove(uid);
                if many.places.len() > FEW / 2 {
                    return true;
                }
                many.parts.iter().flat_map(|part| part.iter()).map(|(_, workload)| Arc::clone(workload)).collect()
            }
        };
        all.retain(|workload| *workload.uid != *uid);
        match (all.len(), all.first()) {
            (_, None) => return false,
            (1, Some(last)) => *self = Self::One(Arc::clone(last)),
            _ => *self = Self::Few(all),
        }
        true
    }
}

fn class(workload: &Workload) -> Reverse<(bool, bool)> {
    Reverse((workload.is_pod(), workload.hbone))
}

// === impl Many ===

impl Many {
    /// These, which are in order.
    fn new(all: Vec<Arc<Workload>>) -> Self {
        let mut many = Self { parts: Vec::new(), places: Shards::default(), next: (-1, 0) };
        for workload in &all {
            let turn = many.next.1;
            many.next.1 += 1;
            many.insert(Place { class: class(workload), turn }, workload);
        }
        many
    }

    fn put(&mut self, now: &Arc<Workload>) {
        let turn = match self.places.get(&now.uid).copied() {
            Some(place) => {
                self.take_out(place);
                place.turn
            }
            None if now.is_pod() => {
                self.next.0 -= 1;
                self.next.0 + 1
            }
            None => {
                self.next.1 += 1;
                self.next.1 - 1
            }
        };
        self.insert(Place { class: class(now), turn }, now);
    }

    fn remove(&mut self, uid: &str) {
        if let Some(place) = self.places.remove(uid) {
            self.take_out(place);
        }
    }

    fn insert(&mut self, place: Place, workload: &Arc<Workload>) {
        self.places.insert(Arc::clone(&workload.uid), place);
        let entry = (place, Arc::clone(workload));
        let last = self.parts.len().saturating_sub(1);
        let index = self.part_of(place).min(last);
        let Some(part) = self.parts.get_mut(index) else { return self.parts.push(Arc::new(vec![entry])) };
        let part = Arc::make_mut(part);
        part.insert(part.partition_point(|(other, _)| *other < place), entry);
        if part.len() > PART {
            let rest = part.split_off(PART / 2);
            self.parts.insert(index + 1, Arc::new(rest));
        }
    }

    fn take_out(&mut self, place: Place) {
        let index = self.part_of(place);
        let Some(part) = self.parts.get_mut(index) else { return };
        let part = Arc::make_mut(part);
        part.retain(|(other, _)| *other != place);
        if part.is_empty() {
            self.parts.remove(index);
        }
    }

    /// The part whose range this place is in, or past the last one.
    fn part_of(&self, place: Place) -> usize {
        self.parts.partition_point(|part| part.last().is_some_and(|(last, _)| *last < place))
    }
}
