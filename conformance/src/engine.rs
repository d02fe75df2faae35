//! The engine's side of the comparison.

use ambit_policy::{
    CompileError, Compiled, ConnectionFacts, Decision, PathNormalization, Peer, RequestFacts, Sni, Stricter, compile,
    stricter,
};

use crate::case::{Connection, PolicySet, Request};

/// A set of policies, ready to judge.
pub struct Engine<'a> {
    set: &'a PolicySet,
    compiled: Compiled,
}

// === impl Engine ===

impl<'a> Engine<'a> {
    pub fn new(set: &'a PolicySet) -> Result<Self, CompileError> {
        Ok(Self { set, compiled: compile(&set.policies, &set.options())? })
    }

    /// The decision with paths read in this way. Where a CUSTOM policy wants to ask, the provider answers.
    pub fn decide(&self, request: &Request, paths: PathNormalization) -> Decision {
        let connection = connection_facts(&request.connection);
        let residual = self.compiled.clone().with_path_normalization(paths).for_connection(&connection);
        if !self.set.is_http {
            return residual.decide_connection();
        }
        let mut approved: Vec<&str> = Vec::new();
        // Each round asks one provider that wasn't asked before, so this ends.
        loop {
            let facts = request_facts(request).with_approvals(&approved);
            let decision = residual.decide(&facts);
            let asked = decision.ask.as_deref().and_then(|name| self.set.providers.get_key_value(name));
            match asked {
                Some((name, true)) if !approved.contains(&name.as_str()) => approved.push(name),
                _ => return residual.with_reason(decision, Some(&facts)),
            }
        }
    }

    /// The named group of deliberate differences that a denial belongs to.
    pub fn why_stricter(&self, request: &Request, paths: PathNormalization) -> Option<Stricter> {
        let yes: Vec<_> =
            self.set.providers.iter().filter(|(_, allows)| **allows).map(|(name, _)| name.as_str()).collect();
        let facts = self.set.is_http.then(|| request_facts(request).with_approvals(&yes));
        stricter(&self.set.policies, &self.set.options(), paths, &connection_facts(&request.connection), facts)
    }
}

fn connection_facts(connection: &Connection) -> ConnectionFacts {
    let sni = connection.sni.as_deref().map_or(Sni::Absent, |name| Sni::Name(name.into()));
    let facts = ConnectionFacts::new(connection.source_ip, connection.destination_ip, connection.destination_port)
        .with_remote_ip(connection.remote_ip)
        .with_sni(sni);
    ConnectionFacts { peer: connection.principal.as_deref().and_then(Peer::new), ..facts }
}

fn request_facts(request: &Request) -> RequestFacts<'_> {
    RequestFacts::new(&request.method, &request.target, &request.host)
        .with_headers(&request.headers)
        .with_claims(request.claims.as_ref())
}
