//! What the proxies are told of the mesh, in ztunnel's local form (`spec/ztunnel.md` 10).

use std::{fmt::Write, net::Ipv4Addr};

use crate::{
    load::{ECHO_PORT, SINK_PORT},
    pods::{CLIENT, SERVER},
};

/// Namespaces of the client and the server.
pub(crate) const CLIENT_NAMESPACE: &str = "clients";
pub(crate) const SERVER_NAMESPACE: &str = "servers";
/// Nodes of the client and the server.
pub(crate) const CLIENT_NODE: &str = "na";
pub(crate) const SERVER_NODE: &str = "nb";
/// The server's service.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 7);
/// Where those are; a connection to any of them comes to the server.
pub(crate) const MANY_NETWORK: &str = "10.246.0.0/16";
/// The client's name in the configuration.
pub(crate) const CLIENT_UID: &str = "Kubernetes//Pod/clients/client";
/// The service with many endpoints.
pub(crate) const MANY_HOSTNAME: &str = "many.servers.svc.cluster.local";
pub(crate) const MANY_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 8);

/// One client, one server, the server's service on these ports, and these policies: entries of the local form's
/// `policies`, each one a line of flow-style YAML. Those named in `selected` select the server.
pub(crate) fn two_pods(ports: &[u16], policies: &[String], selected: &[String]) -> String {
    let ports: Vec<String> = ports.iter().map(|port| format!("{port}: {port}")).collect();
    let ports = format!("{{{}}}", ports.join(", "));
    let mut text = String::from("workloads:\n");
    let service = format!("{{\"{SERVER_NAMESPACE}/server.{SERVER_NAMESPACE}.svc.cluster.local\": {ports}}}");
    let ends = [
        ("client", CLIENT_NAMESPACE, CLIENT_NODE, CLIENT, "{}", String::new()),
        ("server", SERVER_NAMESPACE, SERVER_NODE, SERVER, service.as_str(), selected.join(", ")),
    ];
    for (name, namespace, node, ip, services, policies) in ends {
        let _infallible = writeln!(
            text,
            "- {{uid: \"Kubernetes//Pod/{namespace}/{name}\", name: {name}, namespace: {namespace}, \
             trustDomain: cluster.local, serviceAccount: {name}, workloadIps: [\"{ip}\"], protocol: HBONE, node: {node}, \
             network: \"\", clusterId: Kubernetes, workloadName: {name}, workloadType: deployment, canonicalName: {name}, \
             canonicalRevision: v1, services: {services}, authorizationPolicies: [{policies}]}}"
        );
    }
    let _infallible = writeln!(
        text,
        "services:\n- {{name: server, namespace: {SERVER_NAMESPACE}, \
         hostname: server.{SERVER_NAMESPACE}.svc.cluster.local, vips: [\"/{SERVICE}\"], ports: {ports}}}\npolicies:{}",
        if policies.is_empty() { " []" } else { "" }
    );
    for policy in policies {
        let _infallible = writeln!(text, "- {policy}");
    }
    text
}

/// The two pods that are measured.
pub(crate) fn measured() -> String {
    two_pods(&[ECHO_PORT, SINK_PORT], &[], &[])
}

/// The same, and a service at [`MANY_SERVICE`] with this many endpoints in [`MANY_NETWORK`], which speak plain TCP.
pub(crate) fn many_endpoints(count: usize) -> String {
    let text = measured();
    let (head, tail) = text.split_once("services:\n").unwrap_or((&text, ""));
    let mut text = head.to_owned();
    let service = format!("{SERVER_NAMESPACE}/many.{SERVER_NAMESPACE}.svc.cluster.local");
    for index in 0..count {
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 246, 0, 1).to_bits() + u32::try_from(index).unwrap_or_default());
        let _infallible = writeln!(
            text,
            "- {{uid: \"Kubernetes//Pod/{SERVER_NAMESPACE}/many-{index}\", name: many-{index}, \
             namespace: {SERVER_NAMESPACE}, trustDomain: cluster.local, serviceAccount: many, \
             workloadIps: [\"{ip}\"], protocol: TCP, node: {SERVER_NODE}, network: \"\", clusterId: Kubernetes, \
             workloadName: many, workloadType: deployment, canonicalName: many, canonicalRevision: v1, \
             services: {{\"{service}\": {{{ECHO_PORT}: {ECHO_PORT}}}}}}}"
        );
    }
    let _infallible = write!(
        text,
        "services:\n- {{name: many, namespace: {SERVER_NAMESPACE}, hostname: many.{SERVER_NAMESPACE}.svc.cluster.local, \
         vips: [\"/{MANY_SERVICE}\"], ports: {{{ECHO_PORT}: {ECHO_PORT}}}}}\n{tail}"
    );
    text
}
