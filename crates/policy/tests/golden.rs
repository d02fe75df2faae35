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
    CompileError, Compiled, ConnectionFacts, Decision, Options, PathNormalization, RequestFacts, Verdict, compile,
    reference,
};
use serde::Deserialize;

/// Fewer than this run would mean that the test passes by skipping.
const MIN_CASES_RUN: usize = 8_500;

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
    assert!(tally.agreed + tally.stricter.values().sum::<usize>() >= MIN_CASES_RUN, "too few cases ran:\n{tally}");
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
    dest_ip: IpAddr,
    dest_port: u16,
    #[serde(default)]
    method: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    host: String,
}

#[derive(Default, Deserialize)]
struct Derived {
    path: Option<String>,
}

/// What came of a case.
enum Outcome {
    Skipped(&'static str),
    Judged { ours: Decision, group: Option<&'static str> },
}

fn case_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn judge(case: &Case, policies: &[AuthorizationPolicy]) -> Outcome {
    let options = Options {
        trust_domains: [&case.target.trust_domain]
            .into_iter()
            .chain(&case.target.trust_domain_aliases)
            .cloned()
            .collect(),
        root_namespace: case.target.root_namespace.clone(),
    };
    let peer = match case.request.principal.as_deref().map(str::parse) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return Outcome::Skipped("the peer's identity isn't a workload's, so mutual TLS refuses it"),
    };
    let connection = ConnectionFacts {
        peer,
        source_ip: case.request.source_ip,
        destination_ip: case.request.dest_ip,
        destination_port: case.request.dest_port,
    };
    let paths = normalization(case);
    let compiled = match compile(policies, &options) {
        Ok(compiled) => compiled.with_path_normalization(paths),
        Err(error) if is_unsupported(&error) => return Outcome::Skipped("a policy uses what isn't supported yet"),
        Err(error) => {
            let ours = decide(&Compiled::deny_all(&error.to_string()), &connection, case);
            return Outcome::Judged { ours, group: Some("a value that can't be used rejects the policy (row 17, 19)") };
        }
    };
    let ours = decide(&compiled, &connection, case);
    let request = case.request();
    let slow = reference::Case { policies, options: &options, connection: &connection, request, paths };
    assert_eq!(ours.verdict, reference::verdict(&slow), "{}: the reference evaluator differs: {ours:?}", case.id);
    let base_allows = || {
        let base = compiled.clone().with_path_normalization(PathNormalization::Base);
        decide(&base, &connection, case).is_allowed()
    };
    let group = if case.request.principal.is_none() {
        Some("a client without identity matches no `principals` (row 13)")
    } else if paths == PathNormalization::AllReadings && base_allows() {
        Some("allowed under one reading of the path, denied under another (all-readings rule)")
    } else if [case.request.source_ip, case.request.dest_ip].iter().any(|ip| ip.to_canonical() != *ip) {
        Some("an IPv4-mapped address is judged as IPv4 too (row 23)")
    } else {
        None
    };
    Outcome::Judged { ours, group }
}

fn decide(compiled: &Compiled, connection: &ConnectionFacts, case: &Case) -> Decision {
    let residual = compiled.for_connection(connection);
    case.request().map_or_else(|| residual.decide_connection(), |request| residual.decide(&request))
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

fn is_unsupported(error: &CompileError) -> bool {
    error.message.contains("not supported yet")
}

// === impl Case ===

impl Case {
    fn request(&self) -> Option<RequestFacts<'_>> {
        let CaseRequest { method, path, host, .. } = &self.request;
        (self.target.protocol == "http").then_some(RequestFacts { method, path, authority: host })
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
    skipped: BTreeMap<&'static str, usize>,
    stricter: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, case: &Case, outcome: Outcome) {
        let (ours, group) = match outcome {
            Outcome::Skipped(why) => {
                *self.skipped.entry(why).or_default() += 1;
                return;
            }
            Outcome::Judged { ours, group } => (ours, group),
        };
        let envoys = match case.expect.as_str() {
            "ALLOW" => Verdict::Allow,
            "DENY" => Verdict::Deny,
            other => panic!("{}: unknown verdict `{other}`", case.id),
        };
        match (envoys, ours.verdict, group) {
            (Verdict::Allow, Verdict::Deny, Some(group)) => *self.stricter.entry(group).or_default() += 1,
            (envoys, ours, _) if envoys == ours => self.agreed += 1,
            _ => {
                let CaseRequest { principal, method, path, host, .. } = &case.request;
                self.wrong.push(format!(
                    "{}: Envoy: {envoys}, here: {} ({}); {principal:?} {method} {host} {path}, which Envoy saw as {:?}",
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
        for (why, count) in &self.skipped {
            writeln!(f, "{count:6} skipped: {why}")?;
        }
        writeln!(f, "{:6} wrong", self.wrong.len())
    }
}
