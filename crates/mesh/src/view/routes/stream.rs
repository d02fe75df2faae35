//! Finding the rule of a TLS connection by the server name that its client asks for.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use super::model::StreamRule;

/// The TLSRoutes of one port.
#[derive(Debug, Default)]
pub struct TlsTable {
    exact: HashMap<Box<str>, Arc<StreamRule>>,
    /// By the end of the name, with its dot; longest first.
    suffixes: Vec<(Box<str>, Arc<StreamRule>)>,
    any: Option<Arc<StreamRule>>,
}

// === impl TlsTable ===

impl TlsTable {
    /// Adds a rule for a name; the first one stays.
    pub(super) fn add(&mut self, hostname: Option<&str>, rule: &Arc<StreamRule>) {
        let lower = hostname.map(str::to_ascii_lowercase);
        match lower.as_deref() {
            None => drop(self.any.get_or_insert_with(|| Arc::clone(rule))),
            Some(name) => match name.strip_prefix('*') {
                None => drop(self.exact.entry(name.into()).or_insert_with(|| Arc::clone(rule))),
                Some(suffix) if self.suffixes.iter().any(|(known, _)| **known == *suffix) => {}
                Some(suffix) => {
                    self.suffixes.push((suffix.into(), Arc::clone(rule)));
                    self.suffixes.sort_by_key(|(suffix, _)| Reverse(suffix.len()));
                }
            },
        }
    }

    /// The rule for a connection that asks for this name (in lower case) or for none.
    #[must_use]
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<StreamRule>> {
        let named = name.and_then(|name| {
            let wild = || {
                let ends = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix);
                self.suffixes.iter().find(|(suffix, _)| ends(suffix)).map(|(_, rule)| rule)
            };
            self.exact.get(name).or_else(wild)
        });
        named.or(self.any.as_ref())
    }
}
