//! The answer as data: the points on the way, and what each says.

use std::net::{IpAddr, Ipv4Addr};

use ambit_api::SpiffeId;
use ambit_mesh::{
    enforcement::enforce,
    inputs::{Inputs, NamespacedName},
    way::{self, Considered, Journey, Way},
};
use ambit_policy::{Change, Claims, ConnectionFacts, Explanation, RequestFacts, Verdict};
use serde::Serialize;

use super::Point;
use crate::command::policy::service;

/// What is asked.
pub struct Question<'a> {
    pub from: &'a NamespacedName,
    pub to: &'a NamespacedName,
    pub port: Option<u16>,
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(String, String)],
    pub source_ip: Option<IpAddr>,
    pub claims: &'a [(String, serde_json::Value)],
    pub at: Option<Point>,
}

/// What happens.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// What becomes of the request on the whole way.
    pub verdict: Verdict,
    /// The provider that is asked, if it hangs on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// Why, in one line.
    pub reason: String,
    pub request: Asked,
    /// What isn't in the files and had to be assumed.
    pub assumptions: Vec<String>,
    /// The points on the way, in order. After a denial the others are still judged, as if it weren't.
    pub steps: Vec<Step>,
}

/// The request as it was judged.
#[derive(Debug, Serialize)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub host: String,
    /// The client's identity.
    pub principal: String,
    /// The client's address, if it is known.
    pub source_ip: Option<IpAddr>,
    /// `namespace/name` of the service.
    pub service: String,
    pub port: u16,
}

/// A point on the way.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub point: Kind,
    /// What it stands at: a service account, a Gateway, a pod.
    pub name: String,
    pub verdict: Verdict,
    pub reason: String,
    /// The policies it enforces that were considered, with their rules and fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// How each policy comes to be enforced here, or why it isn't.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<Attached>,
    /// For a denial that is no rule's: what would change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What kind of point it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The node proxy of the client.
    ZtunnelOutbound,
    /// The waypoint.
    Waypoint,
    /// What admits only the waypoint to a port.
    Guard,
    /// The node proxy of the pod.
    ZtunnelInbound,
}

/// A policy and why it counts here.
#[derive(Clone, Debug, Serialize)]
pub struct Attached {
    /// `namespace/name`.
    pub policy: String,
    pub via: String,
    /// Why it takes no part in the verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<&'static str>,
    /// Why it can't be enforced, so that everything is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

/// Address of one whose address isn't known.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Port that clients leave out of `Host`.
const HTTP_PORT: u16 = 80;

/// Works the way out and asks every point on it.
///
/// # Errors
/// The client can't have an identity, or the files have services but not this one.
pub fn answer(inputs: &Inputs, question: &Question<'_>) -> Result<Answer, String> {
    service::check(inputs, question.to)?;
    let journey = Journey { from: question.from, to: question.to, port: question.port };
    let way = way::way(inputs, &journey);
    let NamespacedName { namespace, name } = question.from;
    let identity = SpiffeId::new(&inputs.settings.trust_domain, namespace, name).map_err(|error| error.to_string())?;
    let known_ip = question.source_ip.or(way.client.address);
    let source_ip = known_ip.unwrap_or(UNKNOWN);
    let mut assumptions = way.assumptions.clone();
    let claims: Claims = question.claims.iter().cloned().collect();
    let asking = Asking {
        inputs,
        question,
        way: &way,
        identity: &identity,
        source_ip,
        host: host(inputs, question, way.port),
        headers: question.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")).cloned().collect(),
        claims: (!claims.is_empty()).then_some(claims),
    };
    let steps = asking.steps();
    if known_ip.is_none() && steps.iter().any(Step::speaks_of_addresses) {
        assumptions.push(format!(
            "policies speak of the client's address, which isn't known; give `--source-ip` ({UNKNOWN} is assumed)"
        ));
    }
    let (verdict, ask, reason) = overall(&steps, question.at);
    let request = Asked {
        method: question.method.to_owned(),
        path: question.path.to_owned(),
        host: asking.host.clone(),
        principal: identity.to_string(),
        source_ip: known_ip,
        service: question.to.to_string(),
        port: way.port,
    };
    Ok(Answer { verdict, ask, reason, request, assumptions, steps })
}

fn host(inputs: &Inputs, question: &Question<'_>, port: u16) -> String {
    let given = question.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    match given {
        Some((_, host)) => host.clone(),
        None if port == HTTP_PORT => inputs.hostname(question.to),
        None => format!("{}:{port}", inputs.hostname(question.to)),
    }
}

/// The first denial decides; of pods that differ, any may be hit.
fn overall(steps: &[Step], at: Option<Point>) -> (Verdict, Option<String>, String) {
    let name = |step: &Step| format!("{}: {}", step.title(), step.reason);
    match steps.iter().find(|step| step.verdict == Verdict::Deny) {
        None => {
            let reason = match at {
                None => "every point on the way lets it pass",
                Some(Point::Waypoint) => "the waypoint lets it pass; the other points on the way weren't asked",
                Some(Point::Ztunnel) => "the pod's node proxy lets it pass; the other points on the way weren't asked",
            };
            (Verdict::Allow, None, reason.to_owned())
        }
        Some(step) => {
            let ask = step.explanation.as_ref().and_then(|explanation| explanation.decision.ask.as_deref());
            (Verdict::Deny, ask.map(str::to_owned), name(step))
        }
    }
}

/// A question with all that is needed to put it.
struct Asking<'a> {
    inputs: &'a Inputs,
    question: &'a Question<'a>,
    way: &'a Way,
    identity: &'a SpiffeId,
    source_ip: IpAddr,
    host: String,
    headers: Vec<(String, String)>,
    claims: Option<Claims>,
}

// === impl Asking ===

impl Asking<'_> {
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.question.at.is_none() {
            steps.push(self.outbound());
        }
        if self.question.at != Some(Point::Ztunnel) && (self.passes_waypoint() || self.question.at.is_some()) {
            steps.extend(self.waypoint());
        }
        if self.question.at != Some(Point::Waypoint) {
            self.way.destinations.iter().for_each(|destination| self.inbound(destination, &mut steps));
        }
        steps
    }

    /// A client outside of the mesh sends plaintext to the pod.
    fn passes_waypoint(&self) -> bool {
        self.way.client.captured && self.way.waypoint.as_ref().is_some_and(|waypoint| waypoint.problem.is_none())
    }

    fn outbound(&self) -> Step {
        let step = Step::plain(Kind::ZtunnelOutbound, self.question.from.to_string());
        let allowed = |reason: String| Step { reason, ..step.clone() };
        if !self.way.client.captured {
            return allowed("the client is outside of the mesh: plaintext, no identity, no waypoint".to_owned());
        }
        if let Some(service) = self.inputs.services.get(self.question.to).filter(|_| !self.way.has_port) {
            let reason = format!("service `{}` has no port {}", self.question.to, self.way.port);
            let known: Vec<_> = service.ports.iter().map(|port| port.port.to_string()).collect();
            return step.denied(reason, format!("use a port that it has ({})", known.join(", ")));
        }
        let Some(waypoint) = &self.way.waypoint else {
            return allowed(format!("carries it to the pod as {}; the service has no waypoint", self.identity));
        };
        let name = match &waypoint.gateway {
            Some(gateway) => format!("waypoint `{gateway}`"),
            None => "its waypoint".to_owned(),
        };
        match waypoint.problem {
            None => allowed(format!("carries it to {name} as {}", self.identity)),
            Some(problem) => step.denied(
                format!("the service asks for {name}, which can't be had: {problem}"),
                "mend the Gateway, or the label `istio.io/use-waypoint` of the Service or its namespace".to_owned(),
            ),
        }
    }

    fn waypoint(&self) -> Option<Step> {
        let Some(waypoint) = &self.way.waypoint else {
            let reason = format!("service `{}` has no waypoint, so nothing is judged at one", self.question.to);
            return Some(Step { reason, ..Step::plain(Kind::Waypoint, format!("of {}: none", self.question.to)) });
        };
        let name = waypoint.gateway.as_ref().map_or_else(|| "assumed".to_owned(), ToString::to_string);
        let connection = ConnectionFacts::new(self.source_ip, self.way.address.unwrap_or(UNKNOWN), self.way.port)
            .with_peer(self.identity.clone());
        let request = RequestFacts::new(self.question.method, self.question.path, &self.host)
            .with_headers(&self.headers)
            .with_claims(self.claims.as_ref());
        Some(self.judged(Kind::Waypoint, name, &waypoint.policies, &connection, Some(&request)))
    }

    fn inbound(&self, destination: &way::Destination, steps: &mut Vec<Step>) {
        let name = match &destination.pod {
            None => "no pod known".to_owned(),
            Some(pod) if destination.others == 0 => pod.to_string(),
            Some(pod) => format!("{pod} and {} like it", destination.others),
        };
        let inbound = Step::plain(Kind::ZtunnelInbound, name.clone());
        let Some(port) = destination.port else {
            let reason = "the pod has no port of the name that the service's port leads to".to_owned();
            let remedy = "give a port of the pod's containers that name, or use its number as `targetPort`".to_owned();
            steps.push(inbound.denied(reason, remedy));
            return;
        };
        if !destination.captured {
            let reason = "the pod is outside of the mesh: nothing is enforced there".to_owned();
            steps.push(Step { reason, ..inbound });
            return;
        }
        if let Some(guard) = destination.guards.first() {
            steps.push(self.guard(destination, guard, port, name.clone()));
        }
        let connection = ConnectionFacts::new(self.source_ip, destination.address.unwrap_or(UNKNOWN), port)
            .with_identity(self.way.client.captured.then(|| self.identity.clone()));
        steps.push(self.judged(Kind::ZtunnelInbound, name, &destination.policies, &connection, None));
    }

    fn guard(&self, destination: &way::Destination, guard: &NamespacedName, port: u16, name: String) -> Step {
        let step = Step::plain(Kind::Guard, name);
        let through = self.way.waypoint.as_ref().filter(|_| self.passes_waypoint());
        let admitted = through.and_then(|waypoint| waypoint.gateway.as_ref());
        if admitted.is_some_and(|gateway| destination.guards.contains(gateway)) {
            let reason = format!("port {port} is open to waypoint `{guard}` alone, and that is who comes");
            return Step { reason, ..step };
        }
        let remedy = if self.way.client.captured {
            format!("call a service that is bound to waypoint `{guard}`")
        } else {
            "take the client into the mesh: label its namespace `istio.io/dataplane-mode: ambient`".to_owned()
        };
        step.denied(format!("port {port} is reachable only through waypoint `{guard}`"), remedy)
    }

    fn judged(
        &self,
        point: Kind,
        name: String,
        policies: &[Considered],
        connection: &ConnectionFacts,
        request: Option<&RequestFacts<'_>>,
    ) -> Step {
        let counted = policies.iter().filter(|considered| considered.left_out.is_none());
        let enforceable = counted.map(|considered| considered.policy.as_deref().map_err(Clone::clone));
        let settings = &self.inputs.settings;
        let enforced = enforce(enforceable, &settings.options(), settings.paths());
        let mut explanation = enforced.compiled.explain(connection, request);
        let is_decided_by = |considered: &Considered| {
            let (object, decided) = (&considered.object, explanation.decision.policy.as_ref());
            decided.is_some_and(|policy| *policy.namespace == *object.namespace && *policy.name == *object.name)
        };
        // Nobody has written that policy.
        if policies.iter().any(|policy| policy.via == way::PEER_AUTHENTICATION && is_decided_by(policy)) {
            let text = "take the client into the mesh, or let a PeerAuthentication take plaintext (`mode: PERMISSIVE`)";
            explanation.changes = vec![Change { policy: None, rule: None, text: text.to_owned() }];
        }
        let refusal = enforced.refusal.as_ref();
        let attached = policies.iter().map(|considered| {
            let policy = format!("{}/{}", considered.object.namespace, considered.object.name);
            let uncompiled = refusal.filter(|refusal| refusal.policy.to_string() == policy);
            let rejected = considered.policy.as_ref().err().or(uncompiled).map(|refusal| refusal.reason.clone());
            Attached { policy, via: considered.via.clone(), left_out: considered.left_out, rejected }
        });
        let reason = match policies {
            [] => "no policy applies".to_owned(),
            _ => explanation.decision.reason.to_string(),
        };
        let verdict = explanation.decision.verdict;
        let remedy = refusal.map(|refusal| format!("mend policy {}, or remove it", refusal.policy));
        Step { point, name, verdict, reason, attached: attached.collect(), explanation: Some(explanation), remedy }
    }
}

// === impl Step ===

impl Step {
    /// It lets everything pass.
    fn plain(point: Kind, name: String) -> Self {
        let reason = String::new();
        Self { point, name, verdict: Verdict::Allow, reason, explanation: None, attached: Vec::new(), remedy: None }
    }

    fn denied(self, reason: String, remedy: String) -> Self {
        Self { verdict: Verdict::Deny, reason, remedy: Some(remedy), ..self }
    }

    fn speaks_of_addresses(&self) -> bool {
        let names = ["ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks", "source.ip", "remote.ip"];
        let rules = self.explanation.iter().flat_map(|e| &e.policies).flat_map(|policy| &policy.rules);
        let entries = rules.flat_map(|rule| rule.from.iter().chain(&rule.when));
        entries.flat_map(|entry| &entry.fields).any(|field| names.contains(&field.field.as_str()))
    }

    /// What it is, in words.
    pub fn title(&self) -> String {
        match self.point {
            Kind::ZtunnelOutbound => format!("node proxy of the client ({})", self.name),
            Kind::Waypoint => format!("waypoint {}", self.name),
            Kind::Guard => format!("guard of the pod ({})", self.name),
            Kind::ZtunnelInbound => format!("node proxy of the pod ({})", self.name),
        }
    }
}
