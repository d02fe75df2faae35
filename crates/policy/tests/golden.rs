//! The golden cases: policies and requests with the verdict that a real Envoy gave (`shared/cases/authz`).
//!
//! What Envoy denies is denied. What Envoy allows is allowed, or else it is denied on purpose: each such group is listed
//! in `docs/differences-from-istio.md`, and counted here.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ambit_api::{AuthorizationPolicy, Resource, authorization_policy::PolicyTargetReference, load_text};
use ambit_policy::{
    Claims, Compiled, ConnectionFacts, Decision, HttpVersion, Options, PathNormalization, Peer, ProviderKind,
    RequestFacts, Residual, Sni, Stricter, Verdict, compile, reference, stricter,
};
use serde::Deserialize;

/// Fewer than this run would mean that the test passes by skipping.
const MIN_CASES_RUN: usize = 19_000;

/// So many in a hundred may be denied on purpose.
const MAX_STRICTER_PERCENT: usize = 5;

#[test]
fn no_case_that_envoy_denies_is_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/authz");
    if !root.join("public").is_dir() {
        assert!(std::env::var_os("CI").is_none(), "the golden cases are not at `{}`", root.display());
        eprintln!("SKIPPED: no golden cases at `{}`; nothing was compared with Envoy", root.display());
        return;
    }
    let mut tally = Tally::default();
    let mut policies = PolicyFiles { root: root.clone(), files: HashMap::new() };
    for file in case_files(&root.join("public")).into_iter().chain(case_files(&root.join("istio"))) {
        let text = fs::read_to_string(&file).expect("a readable case file");
        for line in text.lines() {
            let case: Case = serde_json::from_str(line).expect("a case");
            tally.add(&case, judge(&case, &policies.attached(&case)));
        }
    }
    println!("{tally}");
    let first: Vec<_> = tally.wrong.iter().take(10).collect();
    assert!(first.is_empty(), "{} cases differ, the first: {first:#?}", tally.wrong.len());
    let stricter = tally.stricter.values().sum::<usize>();
    assert!(tally.agreed + stricter >= MIN_CASES_RUN, "too few cases ran:\n{tally}");
    assert!(stricter * 100 <= (tally.agreed + stricter) * MAX_STRICTER_PERCENT, "too many are stricter:\n{tally}");
}

#[derive(Deserialize)]
struct Case {
    id: String,
    policies: String,
    target: Target,
    request: CaseRequest,
    expect: String,
    #[serde(default)]
    derived: Derived,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    protocol: String,
    /// At a waypoint: what is served, and by which waypoint.
    service: Option<Name>,
    waypoint: Option<Name>,
    /// At a workload's own proxy.
    workload: Option<Workload>,
    root_namespace: String,
    trust_domain: String,
    trust_domain_aliases: Vec<String>,
    /// What each provider answers.
    extension_providers: BTreeMap<String, String>,
    path_normalization: Option<String>,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct Workload {
    namespace: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct CaseRequest {
    principal: Option<String>,
    source_ip: IpAddr,
    remote_ip: Option<IpAddr>,
    dest_ip: IpAddr,
    dest_port: u16,
    #[serde(default)]
    method: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    jwt_claims: Option<Claims>,
    sni: Option<String>,
    #[serde(default)]
    http_version: String,
}

#[derive(Default, Deserialize)]
struct Derived {
    path: Option<String>,
}

/// What came of a case.
struct Outcome {
    ours: Decision,
    group: Option<Stricter>,
}

fn case_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn judge(case: &Case, policies: &[AuthorizationPolicy]) -> Outcome {
    let Target { trust_domain, trust_domain_aliases, root_namespace, extension_providers, .. } = &case.target;
    let options = Options {
        trust_domains: [trust_domain].into_iter().chain(trust_domain_aliases).cloned().collect(),
        root_namespace: root_namespace.clone(),
        several_providers: false,
        providers: extension_providers.keys().map(|name| (name.clone(), ProviderKind::Http)).collect(),
    };
    let connection = case.connection();
    let paths = normalization(case);
    let compiled = match compile(policies, &options) {
        Ok(compiled) => compiled.with_path_normalization(paths),
        Err(error) => Compiled::deny_all(&error.to_string()),
    };
    let rejected = compile(policies, &options).is_err();
    let residual = compiled.for_connection(&connection);
    let (ours, approved_by) = decide(&residual, case);
    let approved: Vec<&str> = approved_by.iter().map(String::as_str).collect();
    let request = case.request().map(|request| request.with_approvals(&approved));
    if !rejected && ours.ask.is_none() {
        let slow = reference::Case { policies, options: &options, connection: &connection, request, paths };
        assert_eq!(ours.verdict, reference::verdict(&slow), "{}: the reference evaluator differs: {ours:?}", case.id);
    }
    let group = (!ours.is_allowed()).then(|| stricter(policies, &options, paths, &connection, request)).flatten();
    Outcome { ours, group }
}

/// Decides, asking the providers on the way. Also gives those that allow it.
fn decide(residual: &Residual, case: &Case) -> (Decision, Vec<String>) {
    let mut approved_by = Vec::new();
    loop {
        let names: Vec<&str> = approved_by.iter().map(String::as_str).collect();
        let request = case.request().map(|request| request.with_approvals(&names));
        let decision = match &request {
            Some(request) => residual.with_reason(residual.decide(request), Some(request)),
            None => residual.with_reason(residual.decide_connection_approved(&names), None),
        };
        match decision.ask.as_deref().map(|name| (name, case.target.extension_providers[name].as_str())) {
            Some((name, "ALLOW")) => approved_by.push(name.to_owned()),
            _ => return (decision, approved_by),
        }
    }
}

fn normalization(case: &Case) -> PathNormalization {
    match case.target.path_normalization.as_deref() {
        None => PathNormalization::AllReadings,
        Some("NONE") => PathNormalization::None,
        Some("BASE") => PathNormalization::Base,
        Some("MERGE_SLASHES") => PathNormalization::MergeSlashes,
        Some("DECODE_AND_MERGE_SLASHES") => PathNormalization::DecodeAndMergeSlashes,
        Some(other) => panic!("{}: unknown mode `{other}`", case.id),
    }
}

// === impl Case ===

impl Case {
    fn connection(&self) -> ConnectionFacts {
        let CaseRequest { principal, source_ip, remote_ip, dest_ip, dest_port, sni, .. } = &self.request;
        let sni = sni.as_deref().map_or(Sni::Absent, |name| Sni::Name(name.into()));
        let peer = principal.as_deref().map(|uri| Peer::new(uri).expect("a SPIFFE id"));
        ConnectionFacts {
            peer,
            remote_ip: *remote_ip,
            ..ConnectionFacts::new(*source_ip, *dest_ip, *dest_port).with_sni(sni)
        }
    }

    fn request(&self) -> Option<RequestFacts<'_>> {
        let CaseRequest { method, path, host, headers, jwt_claims, http_version, .. } = &self.request;
        let version = if http_version == "2" { HttpVersion::Http2 } else { HttpVersion::Http1 };
        let facts = RequestFacts::new(method, path, host).with_headers(headers).with_claims(jwt_claims.as_ref());
        (self.target.protocol == "http").then_some(facts.with_version(version))
    }
}

/// Policy files, each read once.
struct PolicyFiles {
    root: PathBuf,
    files: HashMap<String, Vec<AuthorizationPolicy>>,
}

// === impl PolicyFiles ===

impl PolicyFiles {
    fn attached(&mut self, case: &Case) -> Vec<AuthorizationPolicy> {
        let all = self.files.entry(case.policies.clone()).or_insert_with(|| read(&self.root.join(&case.policies)));
        all.iter().filter(|policy| is_attached(policy, &case.target)).cloned().collect()
    }
}

fn read(file: &Path) -> Vec<AuthorizationPolicy> {
    let text = fs::read_to_string(file).expect("a readable policy file");
    // To Kubernetes, and so to the loader, a bare `n` is a boolean and `08080` a number; to the writer of these files
    // they were text.
    let text = text.replace("\n  name: n\n", "\n  name: 'n'\n").replace("- 08080\n", "- '08080'\n");
    let written = text.matches("kind: AuthorizationPolicy").count();
    let loaded = load_text(&file.display().to_string(), &text);
    let policies: Vec<_> = loaded
        .objects
        .into_iter()
        .filter_map(|object| match object.resource {
            Resource::AuthorizationPolicy(policy) => Some(*policy),
            _ => None,
        })
        .collect();
    assert_eq!(policies.len(), written, "a policy isn't loaded: {:#?}", loaded.diagnostics);
    policies
}

/// Which policies a proxy enforces (`spec/authorization.md` 2.8): a waypoint those that name what it serves, a workload's
/// own proxy those that select the workload.
fn is_attached(policy: &AuthorizationPolicy, target: &Target) -> bool {
    let refs = match policy.spec.target_refs.as_slice() {
        [] => policy.spec.target_ref.as_slice(),
        refs => refs,
    };
    match &target.workload {
        None => refs.iter().any(|reference| names(reference, policy, target)),
        Some(workload) => {
            let wanted = policy.spec.selector.iter().flat_map(|selector| &selector.match_labels);
            refs.is_empty()
                && [&workload.namespace, &target.root_namespace].contains(&&policy.namespace)
                && wanted.into_iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        }
    }
}

fn names(reference: &PolicyTargetReference, policy: &AuthorizationPolicy, target: &Target) -> bool {
    let (Some(service), Some(waypoint)) = (&target.service, &target.waypoint) else { return false };
    let (name, namespace) = (&reference.name, &policy.namespace);
    if !reference.namespace.is_empty() && reference.namespace != *namespace {
        return false;
    }
    let names_service = service.kind == reference.kind && service.name == *name && service.namespace == *namespace;
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("" | "core", "Service") | ("networking.istio.io", "ServiceEntry") => names_service,
        ("gateway.networking.k8s.io", "Gateway") => waypoint.name == *name && waypoint.namespace == *namespace,
        ("gateway.networking.k8s.io", "GatewayClass") => {
            name == "istio-waypoint" && *namespace == target.root_namespace
        }
        _ => false,
    }
}

/// How the cases went.
#[derive(Default)]
struct Tally {
    agreed: usize,
    stricter: BTreeMap<Stricter, usize>,
    wrong: Vec<String>,
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, case: &Case, outcome: Outcome) {
        let Outcome { ours, group } = outcome;
        let envoys = match case.expect.as_str() {
            "ALLOW" => Verdict::Allow,
            "DENY" => Verdict::Deny,
            other => panic!("{}: unknown verdict `{other}`", case.id),
        };
        match (envoys, ours.verdict, group) {
            (Verdict::Allow, Verdict::Deny, Some(group)) => *self.stricter.entry(group).or_default() += 1,
            (envoys, ours, _) if envoys == ours => self.agreed += 1,
            _ => {
                let CaseRequest { principal, method, path, host, headers, jwt_claims, sni, .. } = &case.request;
                self.wrong.push(format!(
                    "{}: Envoy: {envoys}, here: {} ({}); {principal:?} {method} {host} {path} {headers:?} \
                     {jwt_claims:?} {sni:?}, which Envoy saw as {:?}",
                    case.id, ours.verdict, ours.reason, case.derived.path
                ));
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:6} cases with Envoy's verdict", self.agreed)?;
        for (group, count) in &self.stricter {
            writeln!(f, "{count:6} stricter: {group}")?;
        }
        writeln!(f, "{:6} wrong", self.wrong.len())
    }
}
