//! The golden cases that a connection to a node proxy can be made for.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    net::{IpAddr, Ipv4Addr},
};

use ambit_api::{AuthorizationPolicy, Resource, SpiffeId, load_text};
use ambit_mesh::{
    derive::derive,
    inputs::{Change, Inputs, NamespacedName, Policy, Settings},
};
use ambit_xds::AUTHORIZATION_TYPE;
use serde::Deserialize;

use super::Policies;
use crate::{control::TRUST_DOMAIN, pods::SERVER};

/// The project's copy.
const ARCHIVE: &[u8] = include_bytes!("../../../../../tests/data/authz-public.jsonl.gz");
/// What the cases of L4 are in.
const CASES: &str = "public/tcp.jsonl";
/// The address that the cases call, and the network that some policies name for it. Here it's the server's pod.
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const DESTINATION_NETWORK: (&str, &str) = ("10.96.0.0/16", "10.244.2.0/24");
/// Fields that the groups of Istio's wire format have no place for.
const BEYOND_GROUPS: [&str; 8] = [
    "remoteIpBlocks:",
    "trustDomains:",
    "methods:",
    "paths:",
    "hosts:",
    "equestPrincipals:",
    "request.",
    "connection.sni",
];
/// A node proxy sees no ClientHello.
const NEEDS_CLIENT_HELLO: &str = "connection.sni";

/// All of them.
pub(super) struct Golden {
    pub(super) sets: Vec<Set>,
    /// Why how many were left out.
    pub(super) left_out: BTreeMap<&'static str, usize>,
}

/// Cases of the same policies.
pub(super) struct Set {
    /// The policies' file.
    pub(super) name: String,
    pub(super) policies: Policies,
    /// They say what groups can't say.
    pub(super) beyond_groups: bool,
    pub(super) cases: Vec<Case>,
}

/// A connection, and Envoy's verdict on it.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) id: String,
    /// Nobody comes without TLS.
    pub(super) peer: Option<SpiffeId>,
    pub(super) source: Ipv4Addr,
    pub(super) port: u16,
    pub(super) allowed: bool,
}

/// A file of the archive.
#[derive(Deserialize)]
struct Packed {
    path: String,
    text: String,
}

#[derive(Deserialize)]
struct Written {
    id: String,
    policies: String,
    request: Request,
    expect: String,
}

#[derive(Deserialize)]
struct Request {
    principal: Option<String>,
    source_ip: IpAddr,
    dest_ip: IpAddr,
    dest_port: u16,
}

// === impl Golden ===

impl Golden {
    pub(super) fn read() -> Result<Self, String> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(ARCHIVE).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let mut files = BTreeMap::new();
        for line in text.lines() {
            let Packed { path, text } = serde_json::from_str(line).map_err(|error| error.to_string())?;
            files.insert(path, text);
        }
        let cases = files.get(CASES).ok_or_else(|| format!("no `{CASES}` among the golden cases"))?;
        let mut left_out = BTreeMap::new();
        let mut sets: BTreeMap<String, Set> = BTreeMap::new();
        for line in cases.lines() {
            let written: Written = serde_json::from_str(line).map_err(|error| error.to_string())?;
            let name = written.policies.clone();
            let policies = files.get(&name).ok_or_else(|| format!("no `{name}` among the golden cases"))?;
            if policies.contains(NEEDS_CLIENT_HELLO) {
                *left_out.entry("a policy on what a ClientHello says").or_default() += 1;
                continue;
            }
            match Case::from(written) {
                Err(why) => *left_out.entry(why).or_default() += 1,
                Ok(case) => {
                    if !sets.contains_key(&name) {
                        sets.insert(name.clone(), Set::new(&name, policies)?);
                    }
                    if let Some(set) = sets.get_mut(&name) {
                        set.cases.push(case);
                    }
                }
            }
        }
        Ok(Self { sets: sets.into_values().collect(), left_out })
    }

    /// Where connections come from, beside the client's own address.
    pub(super) fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let mut all: BTreeSet<_> = self.cases().map(|case| case.source).collect();
        all.remove(&super::CLIENT);
        all
    }

    /// Where they go.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        self.cases().map(|case| case.port).collect()
    }

    fn cases(&self) -> impl Iterator<Item = &Case> {
        self.sets.iter().flat_map(|set| &set.cases)
    }
}

// === impl Set ===

impl Set {
    /// The policies hold for the namespace instead of for a waypoint's service.
    fn new(name: &str, text: &str) -> Result<Self, String> {
        let own = text
            .replace(DESTINATION_NETWORK.0, DESTINATION_NETWORK.1)
            .replace(&DESTINATION.to_string(), &SERVER.to_string());
        let mut inputs = Inputs::new(Settings::default());
        let loaded = load_text(name, &own);
        let policies = loaded.objects.into_iter().filter_map(|object| match object.resource {
            Resource::AuthorizationPolicy(policy) => Some(*policy),
            _ => None,
        });
        let mut count = 0;
        for mut policy in policies {
            count += 1;
            policy.spec.target_refs.clear();
            policy.spec.target_ref = None;
            let AuthorizationPolicy { namespace, name, .. } = &policy;
            let name = NamespacedName::new(namespace, name);
            inputs.apply(Change::Policy(name, Some(Policy::new(policy))));
        }
        if count == 0 {
            return Err(format!("{name}: no policy is loaded: {:#?}", loaded.diagnostics));
        }
        let resources = derive(&inputs).into_iter().filter(|((kind, _), _)| *kind == AUTHORIZATION_TYPE);
        Ok(Self {
            name: name.to_owned(),
            policies: resources.map(|(_, resource)| resource).collect(),
            beyond_groups: BEYOND_GROUPS.iter().any(|field| text.contains(field)),
            cases: Vec::new(),
        })
    }
}

// === impl Case ===

impl Case {
    /// The case, or why no connection can be made for it.
    fn from(Written { id, request, expect, .. }: Written) -> Result<Self, &'static str> {
        let Request { principal, source_ip, dest_ip, dest_port: port } = request;
        if dest_ip != IpAddr::V4(DESTINATION) {
            return Err("an address that the server's pod doesn't have");
        }
        let IpAddr::V4(source) = source_ip else { return Err("a client with an IPv6 address") };
        let peer = match principal {
            None => None,
            Some(uri) => Some(uri.parse::<SpiffeId>().map_err(|_| "an identity that isn't one of a workload")?),
        };
        if peer.as_ref().is_some_and(|peer| peer.trust_domain() != TRUST_DOMAIN) {
            return Err("another trust domain, which ends with the handshake");
        }
        Ok(Self { id, peer, source, port, allowed: expect == "ALLOW" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_cases_are_there_and_of_both_kinds() {
        let golden = Golden::read().expect("the archive");
        let left_out: usize = golden.left_out.values().sum();
        assert_eq!(golden.cases().count() + left_out, 1114);
        assert!(golden.cases().count() >= super::super::MIN_CASES, "{:?}", golden.left_out);
        assert!(golden.cases().filter(|case| case.allowed).count() > 200);
        assert!(golden.cases().filter(|case| !case.allowed).count() > 200);
        assert!(golden.sets.iter().all(|set| set.policies.len() == 1));
        assert!(golden.sets.iter().filter(|set| !set.beyond_groups).count() > 40);
    }
}
