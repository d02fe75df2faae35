//! L4 policies and what they mean for one connection to `servers/server`, in ztunnel's local form
//! (`spec/ztunnel.md` 7, 10). Each is the smallest of its kind.

use super::server::{ECHO, TALLY};
use crate::configuration::SERVER_NAMESPACE;

/// Policies and a verdict.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    policies: &'static [Policy],
    pub(crate) from: From,
    pub(crate) port: u16,
    pub(crate) allowed: bool,
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// `clients/client`, at 10.244.1.2.
    Client,
    /// Nobody: a pod outside of the mesh, at 10.244.1.9.
    Outside,
}

struct Policy {
    action: &'static str,
    scope: Scope,
    dry_run: bool,
    /// Rules of clauses of matches.
    rules: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Namespace,
    Mesh,
    /// Selects the server's workload.
    Selects,
    /// Selects another workload.
    SelectsOther,
}

const fn policy(action: &'static str, rules: &'static str) -> Policy {
    Policy { action, scope: Scope::Namespace, dry_run: false, rules }
}

const fn scoped(scope: Scope, action: &'static str, rules: &'static str) -> Policy {
    Policy { action, scope, dry_run: false, rules }
}

const fn dry(action: &'static str, rules: &'static str) -> Policy {
    Policy { action, scope: Scope::Namespace, dry_run: true, rules }
}

const fn case(name: &'static str, policies: &'static [Policy], allowed: bool) -> Case {
    Case { name, policies, from: From::Client, port: ECHO, allowed }
}

const fn outside(name: &'static str, policies: &'static [Policy], allowed: bool) -> Case {
    Case { name, policies, from: From::Outside, port: ECHO, allowed }
}

const ANY: &str = "[[]]";
const NOBODY: &str = "[]";
const CLIENT: &str = "[[[{principals: [!Exact cluster.local/ns/clients/sa/client]}]]]";
const OTHER: &str = "[[[{principals: [!Exact cluster.local/ns/clients/sa/other]}]]]";
/// What istiod makes of PeerAuthentication `STRICT`.
const PLAINTEXT: &str = "[[[{notPrincipals: [!Presence []]}]]]";

/// All cases.
pub(crate) const CASES: &[Case] = &[
    case("no policy", &[], true),
    case("ALLOW without rules", &[policy("Allow", NOBODY)], false),
    case("DENY without rules", &[policy("Deny", NOBODY)], true),
    case("ALLOW, a rule without clauses", &[policy("Allow", ANY)], true),
    case("DENY, a rule without clauses", &[policy("Deny", ANY)], false),
    case("ALLOW, an empty match", &[policy("Allow", "[[[{}]]]")], false),
    case("ALLOW the principal", &[policy("Allow", CLIENT)], true),
    case("ALLOW another principal", &[policy("Allow", OTHER)], false),
    case("ALLOW by prefix", &[policy("Allow", "[[[{principals: [!Prefix cluster.local/ns/clients/]}]]]")], true),
    case(
        "ALLOW by another prefix",
        &[policy("Allow", "[[[{principals: [!Prefix cluster.local/ns/client/]}]]]")],
        false,
    ),
    case("ALLOW by suffix", &[policy("Allow", "[[[{principals: [!Suffix /sa/client]}]]]")], true),
    case("ALLOW by another suffix", &[policy("Allow", "[[[{principals: [!Suffix /sa/clien]}]]]")], false),
    case("ALLOW any principal", &[policy("Allow", "[[[{principals: [!Presence []]}]]]")], true),
    case(
        "ALLOW, the scheme is no part of a principal",
        &[policy("Allow", "[[[{principals: [!Exact \"spiffe://cluster.local/ns/clients/sa/client\"]}]]]")],
        false,
    ),
    case(
        "ALLOW all but the principal",
        &[policy("Allow", "[[[{notPrincipals: [!Exact cluster.local/ns/clients/sa/client]}]]]")],
        false,
    ),
    case(
        "ALLOW all but another principal",
        &[policy("Allow", "[[[{notPrincipals: [!Exact cluster.local/ns/clients/sa/other]}]]]")],
        true,
    ),
    case("ALLOW the namespace", &[policy("Allow", "[[[{namespaces: [!Exact clients]}]]]")], true),
    case("ALLOW another namespace", &[policy("Allow", "[[[{namespaces: [!Exact servers]}]]]")], false),
    case("DENY all but the namespace", &[policy("Deny", "[[[{notNamespaces: [!Exact clients]}]]]")], true),
    case(
        "ALLOW the service account",
        &[policy("Allow", "[[[{serviceAccounts: [{namespace: clients, serviceAccount: client}]}]]]")],
        true,
    ),
    case(
        "ALLOW the service account of another namespace",
        &[policy("Allow", "[[[{serviceAccounts: [{namespace: servers, serviceAccount: client}]}]]]")],
        false,
    ),
    case("ALLOW the source's network", &[policy("Allow", "[[[{sourceIps: [\"10.244.1.0/24\"]}]]]")], true),
    case("ALLOW another network", &[policy("Allow", "[[[{sourceIps: [\"10.244.9.0/24\"]}]]]")], false),
    case("DENY all but the source's network", &[policy("Deny", "[[[{notSourceIps: [\"10.244.1.0/24\"]}]]]")], true),
    case("ALLOW the destination", &[policy("Allow", "[[[{destinationIps: [\"10.244.2.2/32\"]}]]]")], true),
    case("ALLOW another destination", &[policy("Allow", "[[[{destinationIps: [\"10.244.2.3/32\"]}]]]")], false),
    case("ALLOW the port", &[policy("Allow", "[[[{destinationPorts: [7000]}]]]")], true),
    case("ALLOW another port", &[policy("Allow", "[[[{destinationPorts: [7002]}]]]")], false),
    case("DENY all but the port", &[policy("Deny", "[[[{notDestinationPorts: [7000]}]]]")], true),
    case("DENY the tunnel's port", &[policy("Deny", "[[[{destinationPorts: [15008]}]]]")], true),
    Case {
        name: "ALLOW one port, asked for another",
        policies: &[policy("Allow", "[[[{destinationPorts: [7000]}]]]")],
        from: From::Client,
        port: TALLY,
        allowed: false,
    },
    case("DENY wins over ALLOW", &[policy("Allow", CLIENT), policy("Deny", CLIENT)], false),
    case("DENY of another", &[policy("Deny", OTHER)], true),
    case("DENY of another with an ALLOW", &[policy("Deny", OTHER), policy("Allow", CLIENT)], true),
    case(
        "clauses are joined by and",
        &[policy("Allow", "[[[{namespaces: [!Exact clients]}], [{destinationPorts: [7002]}]]]")],
        false,
    ),
    case(
        "matches of a clause are joined by or",
        &[policy("Allow", "[[[{namespaces: [!Exact other]}, {destinationPorts: [7000]}]]]")],
        true,
    ),
    case(
        "rules are joined by or",
        &[policy("Allow", "[[[{namespaces: [!Exact other]}]], [[{destinationPorts: [7000]}]]]")],
        true,
    ),
    case(
        "fields of a match are joined by and",
        &[policy("Allow", "[[[{namespaces: [!Exact clients], destinationPorts: [7002]}]]]")],
        false,
    ),
    case(
        "values of a field are joined by or",
        &[policy("Allow", "[[[{namespaces: [!Exact other, !Exact clients]}]]]")],
        true,
    ),
    case("two ALLOWs, one matches", &[policy("Allow", OTHER), policy("Allow", CLIENT)], true),
    case("DENY on trial", &[dry("Deny", ANY)], true),
    case("ALLOW on trial", &[dry("Allow", OTHER)], true),
    case("DENY of the whole mesh", &[scoped(Scope::Mesh, "Deny", CLIENT)], false),
    case("ALLOW of the whole mesh", &[scoped(Scope::Mesh, "Allow", OTHER)], false),
    case("DENY that selects the workload", &[scoped(Scope::Selects, "Deny", CLIENT)], false),
    case("DENY that selects another", &[scoped(Scope::SelectsOther, "Deny", CLIENT)], true),
    case("ALLOW that selects another", &[scoped(Scope::SelectsOther, "Allow", OTHER)], true),
    case("mutual TLS asked for and spoken", &[policy("Deny", PLAINTEXT)], true),
    outside("plaintext, no policy", &[], true),
    outside("plaintext, mutual TLS asked for", &[policy("Deny", PLAINTEXT)], false),
    outside("plaintext has no principal", &[policy("Allow", "[[[{principals: [!Presence []]}]]]")], false),
    outside("plaintext is nobody's", &[policy("Allow", CLIENT)], false),
    outside("plaintext has no namespace", &[policy("Allow", "[[[{namespaces: [!Exact clients]}]]]")], false),
    outside("plaintext has an address", &[policy("Allow", "[[[{sourceIps: [\"10.244.1.9/32\"]}]]]")], true),
];

// === impl Case ===

impl Case {
    /// The policies in ztunnel's local form.
    pub(crate) fn policies(&self) -> Vec<String> {
        let each = self.policies.iter().enumerate();
        each.map(|(index, Policy { action, scope, dry_run, rules })| {
            let (namespace, scope) = match scope {
                Scope::Namespace => (SERVER_NAMESPACE, "Namespace"),
                Scope::Mesh => ("istio-system", "Global"),
                Scope::Selects | Scope::SelectsOther => (SERVER_NAMESPACE, "WorkloadSelector"),
            };
            format!(
                "{{name: p{index}, namespace: {namespace}, scope: {scope}, action: {action}, dryRun: {dry_run}, rules: {rules}}}"
            )
        })
        .collect()
    }

    /// Names of those that select the server's workload.
    pub(crate) fn selected(&self) -> Vec<String> {
        let each = self.policies.iter().enumerate().filter(|(_, policy)| policy.scope == Scope::Selects);
        each.map(|(index, _)| format!("{SERVER_NAMESPACE}/p{index}")).collect()
    }
}
