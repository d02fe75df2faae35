//! Which endpoints are near to a waypoint.

use std::sync::Arc;

use crate::view::Locality;

/// Which endpoints are near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nearness {
    /// All of them.
    Off,
    /// Those of the same subzone, then of the same zone, then region, then of the region that stands in for it.
    Failover {
        /// Regions, and who stands in for them.
        regions: Vec<(Arc<str>, Arc<str>)>,
    },
    /// Shares for clients of a locality; where none is given, all are near.
    Distribute {
        /// The first that fits counts.
        from: Vec<(LocalityPattern, Vec<Share>)>,
    },
}

/// A part of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where it goes.
    pub to: LocalityPattern,
    /// How large it is, relative to the others. Not 0.
    pub weight: u32,
}

/// A locality, of which later parts may be left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalityPattern {
    parts: Vec<Box<str>>,
}

// === impl Nearness ===

impl Nearness {
    /// How far a locality is from another, as regions fail over: 0 is nearest, 4 farthest.
    #[must_use]
    pub fn rank(regions: &[(Arc<str>, Arc<str>)], own: &Locality, other: &Locality) -> usize {
        if own.region != other.region {
            let stand_in = regions.iter().find(|(from, _)| *from == own.region).map(|(_, to)| to);
            return if stand_in.is_none_or(|to| *to == other.region) { 3 } else { 4 };
        }
        match (own.zone == other.zone, own.subzone == other.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    }
}

// === impl LocalityPattern ===

impl LocalityPattern {
    /// Reads `region/zone/subzone`, where the last part may be `*` and later ones may be left out.
    ///
    /// # Errors
    /// It can't be one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts: Vec<Box<str>> = text.split('/').map(Into::into).collect();
        if parts.last().is_some_and(|last| **last == *"*") {
            parts.pop();
        }
        let odd = parts.len() > 3 || parts.iter().any(|part| part.is_empty() || part.contains('*'));
        if odd { Err(format!("`{text}` is not a locality")) } else { Ok(Self { parts }) }
    }

    /// True if it is meant.
    #[must_use]
    pub fn matches(&self, locality: &Locality) -> bool {
        let names = [&locality.region, &locality.zone, &locality.subzone];
        self.parts.iter().zip(names).all(|(part, name)| **part == **name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality(text: &str) -> Locality {
        let mut parts = text.split('/').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Locality { region: next(), zone: next(), subzone: next() }
    }

    #[test]
    fn patterns_leave_later_parts_open() {
        let matches = |pattern: &str, at: &str| LocalityPattern::parse(pattern).expect(pattern).matches(&locality(at));
        for (pattern, here, elsewhere) in [
            ("eu/1/a", "eu/1/a", "eu/1/b"),
            ("eu/1", "eu/1/a", "eu/2/a"),
            ("eu/1/*", "eu/1/b", "eu/2/b"),
            ("eu/*", "eu/2/b", "us/2/b"),
        ] {
            assert!(matches(pattern, here) && !matches(pattern, elsewhere), "{pattern}");
        }
        assert!(matches("*", "us/2/b"));
        for bad in ["", "eu//a", "a/b/c/d", "e*/1", "eu/*/a"] {
            assert!(LocalityPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn regions_fail_over_to_who_stands_in_for_them() {
        let regions = [(Arc::from("eu"), Arc::from("us"))];
        let rank = |own: &str, other: &str| Nearness::rank(&regions, &locality(own), &locality(other));
        let ranks = ["eu/1/a", "eu/1/b", "eu/2/a", "us/1/a", "asia/1/a"].map(|other| rank("eu/1/a", other));
        assert_eq!(ranks, [0, 1, 2, 3, 4]);
        assert_eq!([rank("us/1/a", "eu/1/a"), rank("us/1/a", "asia/1/a")], [3, 3], "nobody is named for it");
    }
}
