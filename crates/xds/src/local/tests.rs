use std::collections::BTreeMap;

use super::*;
use crate::{
    security::{Authorization, string_match::MatchType},
    workload::{
        Address, IpFamilies, NetworkMode, Service, TunnelProtocol, Visibility, Workload, WorkloadStatus, WorkloadType,
        address, gateway_address::Destination, load_balancing,
    },
};

/// The shape of the files that real node proxies were measured with.
const SAMPLE: &str = r#"# LOCAL_XDS_PATH file
workloads:
- uid: c1//v1/Pod/default/client
  name: client
  namespace: default
  trustDomain: cluster.local
  serviceAccount: client
  workloadIps: ["10.77.0.2"]
  protocol: HBONE
  node: na
  network: ""
  clusterId: c1
  workloadName: client
  workloadType: deployment
  canonicalName: client
  canonicalRevision: v1
  services: {}
- uid: c1//v1/Pod/default/server
  name: server
  namespace: default
  workloadIps: ["10.77.0.3"]
  protocol: TCP
  services:
    "default/server.default.svc.cluster.local":
      5201: 5201
      7000: 7001
services:
- name: server
  namespace: default
  hostname: server.default.svc.cluster.local
  vips: ["/10.96.7.7"]
  ports:
    5201: 5201
    7000: 7000
policies: []
"#;

/// Every field once, with a value that isn't its default.
const EVERYTHING: &str = r#"
workloads:
- uid: u
  name: w
  namespace: n
  trustDomain: td
  serviceAccount: sa
  workloadIps: ["10.0.0.1", "fd00::1"]
  protocol: HBONE
  network: net
  networkMode: HostNetwork
  node: node-1
  waypoint: {destination: n/waypoint.n.svc.cluster.local, hboneMtlsPort: 15008}
  networkGateway: {destination: net2/192.0.2.1, hboneMtlsPort: 15009}
  hostname: w.example.com
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [n/p]
  status: Unhealthy
  clusterId: c
  locality: {region: r, zone: z, subzone: s}
  workloadName: wn
  workloadType: job
  canonicalName: cn
  canonicalRevision: cr
  capacity: 3
  services: {n/s.n.svc.cluster.local: {80: 8080}}
services:
- name: s
  namespace: n
  hostname: s.n.svc.cluster.local
  vips: [net/10.96.0.1, "/fd00::2"]
  cidrVips: [net/10.97.0.0/16]
  ports: {80: 0}
  subjectAltNames: [spiffe://td/ns/n/sa/sa]
  waypoint: {destination: n/waypoint.n.svc.cluster.local, hboneMtlsPort: 15008}
  weightedWaypoints:
  - {destination: {destination: n/canary.n.svc.cluster.local, hboneMtlsPort: 15008}, weight: 20}
  loadBalancer: {routingPreferences: [Network, Region, Zone, Subzone, Node, Cluster], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
  endpoints: {u: {workloadUid: u, port: {80: 8080}, status: Unhealthy}}
policies:
- name: p
  namespace: n
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - namespaces: [!Exact a]
        notNamespaces: [!Prefix b]
        serviceAccounts: [{namespace: n, serviceAccount: x}]
        notServiceAccounts: [{namespace: n, serviceAccount: y}]
        principals: [!Suffix /sa/c, !Presence []]
        notPrincipals: [!Exact cluster.local/ns/n/sa/d]
        sourceIps: [10.0.0.0/8]
        notSourceIps: [10.1.0.0/16]
        destinationIps: ["fd00::/8"]
        notDestinationIps: [192.0.2.1]
        destinationPorts: [80]
        notDestinationPorts: [81, 82]
"#;

fn addresses(deltas: &[DeltaResponse]) -> BTreeMap<String, address::Type> {
    assert_eq!(deltas[1].type_url, ADDRESS_TYPE);
    let read = |resource: &Resource| {
        let address = Address::decode(resource.value.as_slice()).expect("an address");
        (resource.name.clone(), address.r#type.expect("one of the two"))
    };
    deltas[1].resources.iter().map(read).collect()
}

fn workload(deltas: &[DeltaResponse], uid: &str) -> Workload {
    match addresses(deltas).remove(uid) {
        Some(address::Type::Workload(workload)) => workload,
        other => panic!("no workload `{uid}`: {other:?}"),
    }
}

fn service(deltas: &[DeltaResponse], key: &str) -> Service {
    match addresses(deltas).remove(key) {
        Some(address::Type::Service(service)) => service,
        other => panic!("no service `{key}`: {other:?}"),
    }
}

#[test]
fn a_file_as_it_is_used_in_practice_is_read() {
    let deltas = load_text("xds.yaml", SAMPLE).expect("a good file");
    assert_eq!((&*deltas[0].type_url, deltas[0].resources.len()), (AUTHORIZATION_TYPE, 0));
    let client = workload(&deltas, "c1//v1/Pod/default/client");
    assert_eq!(client.tunnel_protocol(), TunnelProtocol::Hbone);
    assert_eq!(client.addresses, [vec![10, 77, 0, 2]]);
    let server = workload(&deltas, "c1//v1/Pod/default/server");
    assert_eq!(server.tunnel_protocol(), TunnelProtocol::None);
    let ports = &server.services["default/server.default.svc.cluster.local"].ports;
    let ports: Vec<_> = ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(5201, 5201), (7000, 7001)]);
    let service = service(&deltas, "default/server.default.svc.cluster.local");
    assert_eq!((service.addresses[0].network.as_str(), &service.addresses[0].address[..]), ("", &[10, 96, 7, 7][..]));
}

#[test]
fn every_field_of_a_workload_is_read() {
    let deltas = load_text("all.yaml", EVERYTHING).unwrap_or_else(|error| panic!("{error}"));
    let workload = workload(&deltas, "u");
    assert_eq!((workload.name.as_str(), workload.namespace.as_str()), ("w", "n"));
    assert_eq!((workload.trust_domain.as_str(), workload.service_account.as_str()), ("td", "sa"));
    assert_eq!((workload.addresses.len(), workload.addresses[1].len()), (2, 16));
    assert_eq!(workload.network_mode(), NetworkMode::HostNetwork);
    assert_eq!((workload.network.as_str(), workload.node.as_str()), ("net", "node-1"));
    let waypoint = workload.waypoint.as_ref().expect("a waypoint");
    assert!(matches!(&waypoint.destination, Some(Destination::Hostname(name)) if name.namespace == "n"));
    let gateway = workload.network_gateway.as_ref().expect("a gateway");
    assert_eq!(gateway.hbone_mtls_port, 15009);
    assert!(
        matches!(&gateway.destination, Some(Destination::Address(at)) if at.network == "net2" && at.address == [192, 0, 2, 1])
    );
    assert_eq!(workload.hostname, "w.example.com");
    assert!(workload.native_tunnel);
    let tunnel = workload.application_tunnel.expect("a tunnel");
    assert_eq!((tunnel.protocol, tunnel.port), (1, 15088));
    assert_eq!(workload.authorization_policies, ["n/p"]);
    assert_eq!(workload.status(), WorkloadStatus::Unhealthy);
    let locality = workload.locality.as_ref().expect("a locality");
    assert_eq!((&*locality.region, &*locality.zone, &*locality.subzone), ("r", "z", "s"));
    assert_eq!((workload.workload_name.as_str(), workload.workload_type()), ("wn", WorkloadType::Job));
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision, &*workload.cluster_id), ("cn", "cr", "c"));
    assert_eq!(workload.capacity.map(|capacity| capacity.value), Some(3));
}

#[test]
fn every_field_of_a_service_is_read() {
    let deltas = load_text("all.yaml", EVERYTHING).unwrap_or_else(|error| panic!("{error}"));
    let service = service(&deltas, "n/s.n.svc.cluster.local");
    let lengths: Vec<_> = service.addresses.iter().map(|address| (address.address.len(), address.length)).collect();
    assert_eq!(lengths, [(4, None), (16, None), (4, Some(16))]);
    assert_eq!((service.ports[0].service_port, service.ports[0].target_port), (80, 0));
    assert_eq!(service.subject_alt_names, ["spiffe://td/ns/n/sa/sa"]);
    assert!(service.waypoint.is_some() && service.canonical);
    assert_eq!(service.weighted_waypoints[0].weight, 20);
    let balancing = service.load_balancing.as_ref().expect("load balancing");
    assert_eq!(balancing.routing_preference, [6, 1, 2, 3, 4, 5]);
    assert_eq!(balancing.mode(), load_balancing::Mode::Failover);
    assert_eq!(balancing.health_policy(), load_balancing::HealthPolicy::AllowAll);
    assert_eq!((service.ip_families(), service.visibility()), (IpFamilies::Ipv4Only, Visibility::Namespace));
}

#[test]
fn every_field_of_a_policy_is_read() {
    let deltas = load_text("all.yaml", EVERYTHING).unwrap_or_else(|error| panic!("{error}"));
    let resource = &deltas[0].resources[0];
    assert_eq!(resource.name, "n/p");
    let policy = Authorization::decode(resource.value.as_slice()).expect("an authorization");
    assert_eq!((policy.scope, policy.action, policy.dry_run), (2, 1, true));
    let fields = &policy.groups[0].rules[0].matches[0];
    let pattern = |patterns: &[crate::security::StringMatch]| patterns[0].match_type.clone().expect("a pattern");
    assert_eq!(pattern(&fields.namespaces), MatchType::Exact("a".into()));
    assert_eq!(pattern(&fields.not_namespaces), MatchType::Prefix("b".into()));
    assert_eq!(pattern(&fields.principals), MatchType::Suffix("/sa/c".into()));
    assert!(matches!(fields.principals[1].match_type, Some(MatchType::Presence(_))));
    assert_eq!(pattern(&fields.not_principals), MatchType::Exact("cluster.local/ns/n/sa/d".into()));
    assert_eq!((fields.source_ips[0].length, fields.not_source_ips[0].length), (8, 16));
    assert_eq!((fields.destination_ips[0].address.len(), fields.not_destination_ips[0].length), (16, 32));
    assert_eq!((&fields.destination_ports[..], &fields.not_destination_ports[..]), (&[80][..], &[81, 82][..]));
    assert_eq!(fields.service_accounts[0].service_account, "x");
    assert_eq!(fields.not_service_accounts[0].service_account, "y");
}

#[test]
fn json_says_the_same_as_yaml() {
    let json = r#"{"workloads": [{"uid": "u", "namespace": "n", "workloadIps": ["10.0.0.1"], "protocol": "HBONE",
        "services": {"n/s": {"80": 8080}}}],
        "policies": [{"name": "p", "namespace": "n", "scope": "Namespace", "action": "Allow", "dryRun": false,
        "rules": [[[{"principals": [{"Exact": "a"}, {"Presence": []}]}]]]}]}"#;
    let yaml = "workloads:\n- {uid: u, namespace: n, workloadIps: [10.0.0.1], protocol: HBONE, services: {n/s: {80: 8080}}}\n\
        policies:\n- {name: p, namespace: n, scope: Namespace, action: Allow, dryRun: false, rules: [[[{principals: [!Exact a, !Presence []]}]]]}\n";
    let (json, yaml) = (load_text("f.json", json), load_text("f.yaml", yaml));
    assert_eq!(json.unwrap_or_else(|error| panic!("{error}")), yaml.unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn what_can_not_be_used_is_named_with_file_line_and_field() {
    let workload =
        |rest: &str| format!("workloads:\n- uid: u\n  namespace: n\n  workloadIps: []\n  services: {{}}\n{rest}");
    let policy = |rules: &str| {
        format!(
            "policies:\n- name: p\n  namespace: n\n  scope: Global\n  action: Deny\n  dryRun: false\n  rules: {rules}\n"
        )
    };
    let mut wrong = Vec::new();
    for (text, expected) in [
        (
            "wrkloads: []\n".to_owned(),
            "f.yaml:1:1: error[AMB0206] wrkloads: there is no field `wrkloads` here; did you mean `workloads`?",
        ),
        ("status: 1\n".to_owned(), "f.yaml:1:1: error[AMB0206] status:"),
        (workload("  prtocol: TCP\n"), "f.yaml:6:3: error[AMB0206] workloads[0].prtocol:"),
        (workload("  protocol: tcp\n"), "f.yaml:6:13: error[AMB0205] workloads[0].protocol:"),
        (workload("  capacity: -1\n"), "f.yaml:6:13: error[AMB0205] workloads[0].capacity:"),
        (
            workload("  waypoint: {destination: a, hboneMtlsPort: 1}\n"),
            "f.yaml:6:27: error[AMB0205] workloads[0].waypoint.destination:",
        ),
        (
            workload("  waypoint: {destination: a/b, hboneMtlsPort: 0}\n"),
            "f.yaml:6:47: error[AMB0205] workloads[0].waypoint.hboneMtlsPort:",
        ),
        (
            "workloads:\n- uid: u\n  namespace: n\n  workloadIps: [10.0.0.0.1]\n  services: {}\n".to_owned(),
            "f.yaml:4:17: error[AMB0205] workloads[0].workloadIps[0]:",
        ),
        (
            "workloads:\n- uid: u\n  workloadIps: []\n  services: {}\n".to_owned(),
            "error[AMB0205] workloads[0].namespace:",
        ),
        (
            "workloads:\n- uid: u\n  namespace: n\n  workloadIps: []\n".to_owned(),
            "error[AMB0205] workloads[0].services:",
        ),
        ("workloads:\n- namespace: n\n  workloadIps: []\n  services: {}\n".to_owned(), "workloads[0].uid:"),
        (
            "workloads:\n- uid: u\n  namespace: n\n  workloadIps: []\n  services: {n/s: {http: 80}}\n".to_owned(),
            "f.yaml:5:",
        ),
        ("workloads:\n- uid: u\n  namespace: n\n  workloadIps: []\n  services: {s: {}}\n".to_owned(), "f.yaml:5:"),
        (
            format!("{}- uid: u\n  namespace: n\n  workloadIps: []\n  services: {{}}\n", workload("")),
            "f.yaml:6:3: error[AMB0205] workloads[1]: there is already a `u`",
        ),
        (
            "services:\n- {name: s, namespace: n, hostname: h, ports: {}, vips: [10.0.0.1]}\n".to_owned(),
            "f.yaml:2:58: error[AMB0205] services[0].vips[0]:",
        ),
        (
            "services:\n- {name: s, namespace: n, hostname: h, ports: {}, cidrVips: [/10.0.0.1/40]}\n".to_owned(),
            "services[0].cidrVips[0]:",
        ),
        (
            "services:\n- {name: s, namespace: n, hostname: h, ports: {}, endpoints: {u: {workloadUid: u}}}\n"
                .to_owned(),
            "services[0].endpoints",
        ),
        (
            policy("[[[{sourceIps: [10.0.0.0/33]}]]]"),
            "f.yaml:7:26: error[AMB0205] policies[0].rules[0][0][0].sourceIps[0]:",
        ),
        (policy("[[[{principals: [a]}]]]"), "f.yaml:7:27: error[AMB0205] policies[0].rules[0][0][0].principals[0]:"),
        (policy("[[[{principals: [!Regex a]}]]]"), "policies[0].rules[0][0][0].principals[0]"),
        (policy("[[[{principals: [!Presence [1]]}]]]"), "policies[0].rules[0][0][0].principals[0]"),
        (policy("[[[{principal: []}]]]"), "error[AMB0206] policies[0].rules[0][0][0].principal:"),
        (
            "policies:\n- name: p\n  namespace: n\n  scope: Global\n  action: Deny\n  rules: []\n".to_owned(),
            "policies[0].dryRun:",
        ),
        (String::new(), "f.yaml:1:1"),
    ] {
        match load_text("f.yaml", &text) {
            Ok(_) => wrong.push(format!("{text}\nis taken")),
            Err(error) if !error.to_string().contains(expected) => {
                wrong.push(format!("of\n{text}\nis said\n{error}\nnot\n{expected}"));
            }
            Err(error) => assert!(!error.diagnostics().is_empty()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn one_mistake_and_nothing_of_the_file_is_used() {
    let text = SAMPLE.replace("policies: []", "policies: [{name: p}]");
    assert!(load_text("f.yaml", &text).is_err());
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "workloads:\n- {uid: u, namespace: n, workloadIps: [x], services: {}}\n- {uid: v, namespace: n, workloadIps: [y], services: {}}\n";
    assert_eq!(load_text("f.yaml", text).expect_err("two mistakes").diagnostics().len(), 2);
}

#[test]
fn files_that_are_not_there_are_told_so() {
    let error = load(Path::new("/nonexistent/xds.yaml")).expect_err("no file");
    assert!(error.to_string().starts_with("can't read `/nonexistent/xds.yaml`"));
}
