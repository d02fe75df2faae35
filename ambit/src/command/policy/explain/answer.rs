//! The answer as data: the points on the way, and what each says.

use std::net::{IpAddr, Ipv4Addr};

use ambit_api::SpiffeId;
use ambit_mesh::{
    enforcement::enforce,
    inputs::{Inputs, NamespacedName},
    way::{self, Considered, Journey, Way},
};
use ambit_policy::{Claims, ConnectionFacts, Explanation, RequestFacts, Verdict};
use serde::Serialize;

use super::Point;

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
    pub source_ip: IpAddr,
    /// `namespace/name` of the service.
    pub service: String,
    pub port: u16,
}

/// A point on the way.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
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
/// The client can't have an identity.
pub fn answer(inputs: &Inputs, question: &Question<'_>) -> Result<Answer, String> {
    let journey = Journey { from: question.from, to: question.to, port: question.port };
    let way = way::way(inputs, &journey);
    let NamespacedName { namespace, name } = question.from;
    let identity = SpiffeId::new(&inputs.settings.trust_domain, namespace, name).map_err(|error| error.to_string())?;
    let source_ip = question.source_ip.or(way.client.address).unwrap_or(UNKNOWN);
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
    if source_ip == UNKNOWN && steps.iter().any(Step::speaks_of_addresses) {
        assumptions.push(format!(
            "policies speak of the client's address, which isn't known; give `--source-ip` ({UNKNOWN} is assumed)"
        ));
    }
    let (verdict, ask, reason) = overall(&steps);
    let request = Asked {
        method: question.method.to_owned(),
        path: question.path.to_owned(),
        host: asking.host.clone(),
        principal: identity.to_string(),
        source_ip,
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
fn overall(steps: &[Step]) -> (Verdict, Option<String>, String) {
    let name = |step: &Step| format!("{}: {}", step.title(), step.reason);
    match steps.iter().find(|step| step.verdict == Verdict::Deny) {
        None => (Verdict::Allow, None, "every point on the way lets it pass".to_owned()),
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
        let gateway = |waypoint: &way::Waypoint| match &waypoint.gateway {
            Some(gateway) => format!("waypoint `{gateway}`"),
            None => "its waypoint".to_owned(),
        };
        let (verdict, reason) = match &self.way.waypoint {
            _ if !self.way.client.captured => {
                (Verdict::Allow, "the client is outside of the mesh: plaintext, no identity, no waypoint".to_owned())
            }
            Some(waypoint) => match waypoint.problem {
                Some(problem) => (
                    Verdict::Deny,
                    format!("the service asks for {}, which can't be had: {problem}", gateway(waypoint)),
                ),
                None => (Verdict::Allow, format!("carries it to {} as {}", gateway(waypoint), self.identity)),
            },
            None => {
                (Verdict::Allow, format!("carries it to the pod as {}; the service has no waypoint", self.identity))
            }
        };
        let name = self.question.from.to_string();
        Step { point: Kind::ZtunnelOutbound, name, verdict, reason, explanation: None, attached: Vec::new() }
    }

    fn waypoint(&self) -> Option<Step> {
        let Some(waypoint) = &self.way.waypoint else {
            let reason = format!("service `{}` has no waypoint", self.question.to);
            let name = self.question.to.to_string();
            let (point, verdict) = (Kind::Waypoint, Verdict::Allow);
            return Some(Step { point, name, verdict, reason, explanation: None, attached: Vec::new() });
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
        let plain = |point, verdict, reason: String| Step {
            point,
            name: name.clone(),
            verdict,
            reason,
            explanation: None,
            attached: Vec::new(),
        };
        let Some(port) = destination.port else {
            let reason = "the pod has no port of the name that the service's port leads to".to_owned();
            steps.push(plain(Kind::ZtunnelInbound, Verdict::Deny, reason));
            return;
        };
        if !destination.captured {
            let reason = "the pod is outside of the mesh: nothing is enforced there".to_owned();
            steps.push(plain(Kind::ZtunnelInbound, Verdict::Allow, reason));
            return;
        }
        if let Some(guard) = destination.guards.first() {
            let through = self.way.waypoint.as_ref().filter(|_| self.passes_waypoint());
            let admitted = through.and_then(|waypoint| waypoint.gateway.as_ref());
            let (verdict, reason) = if admitted.is_some_and(|gateway| destination.guards.contains(gateway)) {
                (Verdict::Allow, format!("port {port} is open to waypoint `{guard}` alone, and that is who comes"))
            } else {
                (Verdict::Deny, format!("port {port} is reachable only through waypoint `{guard}`"))
            };
            steps.push(plain(Kind::Guard, verdict, reason));
        }
        let connection = ConnectionFacts::new(self.source_ip, destination.address.unwrap_or(UNKNOWN), port)
            .with_identity(self.way.client.captured.then(|| self.identity.clone()));
        steps.push(self.judged(Kind::ZtunnelInbound, name, &destination.policies, &connection, None));
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
        let enforceable = counted.map(|considered| considered.policy.as_ref().map_err(Clone::clone));
        let settings = &self.inputs.settings;
        let enforced = enforce(enforceable, &settings.options(), settings.paths());
        let explanation = enforced.compiled.explain(connection, request);
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
        Step { point, name, verdict, reason, attached: attached.collect(), explanation: Some(explanation) }
    }
}

// === impl Step ===

impl Step {
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
