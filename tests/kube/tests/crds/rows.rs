//! Objects that are right or wrong by Istio's validation: the table of the crate `ambit-api`, and what it has of other kinds.

use std::fmt;

use ambit_api::load_text;

const POLICIES: &str = include_str!("../../../../crates/api/tests/data/policy_rows.txt");

/// The other kinds' specs, in flow style.
const OTHERS: &[(&str, &str)] = &[
    ("AuthorizationPolicy", "{}"),
    ("AuthorizationPolicy", "{rules: [{}]}"),
    ("AuthorizationPolicy", "{action: REFUSE}"),
    ("AuthorizationPolicy", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [x]}}]}]}"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {portz: [http]}}]}]}"),
    ("AuthorizationPolicy", "{targetRefs: [{kind: Service, name: s, group: core}]}"),
    ("AuthorizationPolicy", "{targetRefs: [{kind: ServiceEntry, name: s, group: networking.istio.io}]}"),
    ("AuthorizationPolicy", "{targetRefs: [{kind: Service, group: networking.istio.io, name: s}]}"),
    ("AuthorizationPolicy", "{rules: yes}"),
    ("AuthorizationPolicy", "{rules: [{when: [{values: [a]}]}]}"),
    ("PeerAuthentication", "{}"),
    ("PeerAuthentication", "{mtls: {mode: STRICT}}"),
    ("PeerAuthentication", "{mtls: {mode: \"ON\"}}"),
    ("PeerAuthentication", "{mtls: {modes: STRICT}}"),
    ("PeerAuthentication", "{portLevelMtls: {\"8080\": {mode: STRICT}}}"),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {app: x}}, portLevelMtls: {\"8080\": {mode: DISABLE}, \"9090\": {mode: UNSET}}}",
    ),
    ("PeerAuthentication", "{selector: {matchLabels: {app: x}}, portLevelMtls: {}}"),
    ("PeerAuthentication", "{selector: {matchLabels: {app: x}}, portLevelMtls: {\"0\": {mode: STRICT}}}"),
    ("PeerAuthentication", "{selector: {matchLabels: {app: x}}, portLevelMtls: {\"65536\": {mode: STRICT}}}"),
    ("PeerAuthentication", "{selector: {matchLabels: {app: x}}, portLevelMtls: {http: {mode: STRICT}}}"),
    ("PeerAuthentication", "{selector: {matchLabels: {app: x}}, portLevelMtls: {\"080\": {mode: STRICT}}}"),
    ("PeerAuthentication", "{selector: {matchLabels: {app: \"x*\"}}}"),
    ("PeerAuthentication", "{selector: {matchLabels: {\"\": x}}}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: \"https://i.example\", audiences: [a], timeout: 3s}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: i, jwks_uri: \"https://i.example/keys\"}]}"),
    ("RequestAuthentication", "{jwtRules: [{jwksUri: \"https://i.example/keys\"}]}"),
    ("RequestAuthentication", "{jwtRules: [{audiences: [a]}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: i, jwksUri: \"ftp://i.example/keys\"}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: \"https://i.example\", timeout: soon}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: \"https://i.example\", audiences: [\"\"]}]}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: \"https://i.example\", fromHeaders: [{prefix: x}]}]}"),
    (
        "RequestAuthentication",
        "{jwtRules: [{issuer: \"https://i.example\", outputClaimToHeaders: [{header: \"a b\", claim: c}]}]}",
    ),
    ("RequestAuthentication", "{jwtRules: [{issuer: i, jwks: nonsense}]}"),
    ("DestinationRule", "{host: reviews}"),
    ("DestinationRule", "{host: reviews, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}"),
    ("DestinationRule", "{host: reviews, trafficPolicy: {loadBalancer: {simple: SOMEHOW}}}"),
    ("DestinationRule", "{host: \"a b\"}"),
    ("DestinationRule", "{trafficPolicy: {}}"),
    ("TrafficPolicy", "{targetRefs: [{kind: Service, name: s}], rateLimits: [{requests: 5, interval: 1s}]}"),
    ("TrafficPolicy", "{targetRefs: [{kind: Service, name: s}], rateLimits: [{requests: 5, interval: soon}]}"),
    ("TrafficPolicy", "{targetRefs: [{kind: Service, name: s}], faults: [{abort: {httpStatus: 503, percent: 10}}]}"),
    ("TrafficPolicy", "{targetRefs: [{kind: Service, name: s}], faults: [{abort: {httpStatus: 204}}]}"),
    ("TrafficPolicy", "{targetRefs: [{kind: Service, name: s}], rateLimits: [{requests: -5, interval: 1s}]}"),
    (
        "HTTPRoute",
        "{parentRefs: [{group: \"\", kind: Service, name: s}], rules: [{backendRefs: [{name: s, port: 80}]}]}",
    ),
    ("HTTPRoute", "{parentRefs: [{group: \"\", kind: Service, name: s}], rules: [{matches: [{path: {value: x}}]}]}"),
];

/// One object.
pub struct Row {
    /// Row of the spec's table, if it stands there.
    pub number: Option<u32>,
    /// Name of the object; no other has it.
    pub name: String,
    /// It, as YAML.
    pub text: String,
}

/// All of them.
pub fn all() -> Vec<Row> {
    let table = POLICIES.split("\n== ").skip(1).map(|section| {
        let (title, spec) = section.split_once('\n').expect("a title");
        let number = title.split(' ').next().and_then(|number| number.parse().ok());
        let spec: String = spec.replace('◆', "").lines().map(|line| format!("  {line}\n")).collect();
        (number, "AuthorizationPolicy", format!("spec:\n{spec}"))
    });
    let others = OTHERS.iter().map(|(kind, spec)| (None, *kind, format!("spec: {spec}\n")));
    let rows = table.chain(others).enumerate().map(|(index, (number, kind, spec))| {
        let group = match kind {
            "DestinationRule" => "networking.istio.io",
            "TrafficPolicy" => "ambit.dev",
            "HTTPRoute" => "gateway.networking.k8s.io",
            _ => "security.istio.io",
        };
        let name = format!("row-{index}");
        let text = format!("apiVersion: {group}/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: a\n{spec}");
        Row { number, name, text }
    });
    rows.collect()
}

// === impl Row ===

impl Row {
    /// True if the command line finds an error in it.
    pub fn is_wrong(&self) -> bool {
        load_text("row.yaml", &self.text).has_errors()
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = load_text("row.yaml", &self.text).diagnostics;
        let found: Vec<_> = found.iter().map(|found| format!("[{}] {}", found.code, found.reason())).collect();
        write!(f, "row {:?}, found {found:?} in\n{}", self.number, self.text)
    }
}
