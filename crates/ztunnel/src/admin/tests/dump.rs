//! The dump as istioctl reads it.

use ambit_xds::workload::{
    GatewayAddress, LoadBalancing, Locality, NamespacedHostname, NetworkAddress, Service, Visibility, Workload,
    WorkloadStatus, WorkloadType, gateway_address::Destination, load_balancing,
};
use serde_json::{Value, json};

use super::super::{DumpFacts, Version, WorkloadInfo, WorkloadState, config_dump};
use crate::tests::fixture::{World, allow, application, endpoint, greeting, id, ip, pod, policy, push, service};

/// A workload with every field that a dump shows.
fn whole_workload() -> Workload {
    let waypoint = GatewayAddress {
        destination: Some(Destination::Hostname(NamespacedHostname {
            namespace: "ns".to_owned(),
            hostname: "waypoint.ns.svc.cluster.local".to_owned(),
        })),
        hbone_mtls_port: 15008,
    };
    Workload {
        waypoint: Some(waypoint),
        workload_name: "server".to_owned(),
        workload_type: WorkloadType::Deployment.into(),
        canonical_name: "server-app".to_owned(),
        canonical_revision: "v2".to_owned(),
        node: "node-1".to_owned(),
        cluster_id: "c1".to_owned(),
        locality: Some(Locality { region: "r".to_owned(), zone: "z".to_owned(), subzone: "s".to_owned() }),
        status: WorkloadStatus::Healthy.into(),
        ..endpoint(pod("server-1", "127.77.41.5"), "server", 80, 8080)
    }
}

fn whole_service() -> Service {
    let mut whole = service("server", &["10.96.0.9"], 80, Some("waypoint"));
    whole.addresses.push(NetworkAddress { network: "elsewhere".to_owned(), address: vec![10, 97, 0, 9], length: None });
    whole.addresses.push(NetworkAddress { network: String::new(), address: vec![10, 98, 0, 0], length: Some(16) });
    whole.subject_alt_names = vec!["spiffe://cluster.local/ns/ns/sa/other".to_owned()];
    whole.load_balancing = Some(LoadBalancing {
        routing_preference: vec![load_balancing::Scope::Network.into(), load_balancing::Scope::Zone.into()],
        mode: load_balancing::Mode::Failover.into(),
        health_policy: load_balancing::HealthPolicy::OnlyHealthy.into(),
    });
    whole.canonical = true;
    whole.visibility = Visibility::Namespace.into();
    whole
}

fn dump(world: &World) -> Value {
    let facts = DumpFacts {
        config: json!({"clusterId": "Kubernetes"}),
        version: Version { version: "1.2.3".to_owned(), ..Version::default() },
        pending: [(
            "waits".into(),
            WorkloadState { state: "Pending", connections: None, info: WorkloadInfo::default() },
        )]
        .into(),
        ..DumpFacts::default()
    };
    let bytes = config_dump(&world.ztunnel, &facts).expect("a dump");
    assert!(!String::from_utf8_lossy(&bytes).contains("PRIVATE"), "no key is shown");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[tokio::test]
async fn the_dump_has_the_shape_that_istioctl_reads() {
    let world = World::new();
    push(&world.store, &[&whole_workload()], &[&whole_service()]);
    world.certificates.get(&id("server-1")).await.expect("a certificate");
    let dump = dump(&world);
    let keys: Vec<&String> = dump.as_object().expect("an object").keys().collect();
    let mut expected = [
        "workloads",
        "services",
        "policies",
        "stagedServices",
        "staticConfig",
        "version",
        "config",
        "certificates",
        "workloadState",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let waypoint = json!({"destination": "ns/waypoint.ns.svc.cluster.local", "hboneMtlsPort": 15008});
    assert_eq!(
        dump["workloads"],
        json!([{
            "workloadIps": ["127.77.41.5"], "waypoint": waypoint, "protocol": "HBONE", "networkMode": "Standard",
            "uid": "Kubernetes//Pod/ns/server-1", "name": "server-1", "namespace": "ns",
            "trustDomain": "cluster.local", "serviceAccount": "server-1", "workloadName": "server",
            "workloadType": "deployment", "canonicalName": "server-app", "canonicalRevision": "v2", "node": "node-1",
            "nativeTunnel": false, "authorizationPolicies": [], "status": "Healthy", "clusterId": "c1",
            "locality": {"region": "r", "zone": "z", "subzone": "s"},
            "services": ["ns/server.ns.svc.cluster.local"], "capacity": 1,
        }])
    );
    assert_eq!(
        dump["services"],
        json!([{
            "name": "server", "namespace": "ns", "hostname": "server.ns.svc.cluster.local",
            "vips": ["/10.96.0.9", "elsewhere/10.97.0.9"], "cidrVips": ["/10.98.0.0/16"], "ports": {"80": 0},
            "endpoints": {"Kubernetes//Pod/ns/server-1": {
                "workloadUid": "Kubernetes//Pod/ns/server-1", "service": "ns/server.ns.svc.cluster.local",
                "port": {"80": 8080}, "status": "Healthy",
            }},
            "subjectAltNames": ["spiffe://cluster.local/ns/ns/sa/other"], "waypoint": waypoint,
            "loadBalancer": {
                "routingPreferences": ["Network", "Zone"], "mode": "Failover", "healthPolicy": "OnlyHealthy",
            },
            "canonical": true, "visibility": "Namespace",
        }])
    );
    assert_eq!(dump["staticConfig"], json!({"workloads": [], "services": [], "policies": []}));
    assert_eq!((&dump["stagedServices"], &dump["config"]), (&json!({}), &json!({"clusterId": "Kubernetes"})));
    let version: Vec<&String> = dump["version"].as_object().expect("an object").keys().collect();
    let mut expected =
        ["version", "gitRevision", "rustVersion", "buildProfile", "buildStatus", "istioVersion", "cryptoProvider"];
    expected.sort_unstable();
    assert_eq!(version, expected);

    let certificate = &dump["certificates"][0];
    assert_eq!(certificate["identity"], "spiffe://cluster.local/ns/ns/sa/server-1");
    assert_eq!(certificate["state"], "Available");
    for chain in ["certChain", "rootCerts"] {
        let first = &certificate[chain][0];
        for key in ["pem", "serialNumber", "validFrom", "expirationTime"] {
            assert!(first[key].as_str().is_some_and(|text| !text.is_empty()), "{chain} {key}: {first}");
        }
        // Base64 of `-----BEGIN CERTIFICATE`.
        let pem = first["pem"].as_str().expect("text");
        assert!(pem.starts_with("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t"), "{pem}");
    }
    assert_eq!(dump["workloadState"]["waits"]["state"], "Pending");
}

#[tokio::test]
async fn policies_have_ztunnels_shape_and_all_that_they_say() {
    let world = World::new();
    let spec = r#"{"action":"DENY","rules":[
        {"from":[{"source":{"principals":["cluster.local/ns/a/*","*"],"notNamespaces":["b","*c"],"ipBlocks":["10.0.0.0/8"]}},
         {"source":{"serviceAccounts":["own","x/other"]}}],
         "to":[{"operation":{"ports":["80"],"notPorts":["81"]}}],
         "when":[{"key":"source.namespace","values":["d"]},{"key":"destination.port","notValues":["82"]}]},
        {}]}"#;
    policy(&world.store, "all", spec);
    policy(&world.store, "some", &allow(&["client"]));
    let dump = dump(&world);
    let first = &dump["policies"][0];
    assert_eq!((&first["name"], &first["namespace"]), (&json!("all"), &json!("ns")));
    assert_eq!(
        (&first["scope"], &first["action"], &first["dryRun"]),
        (&"Namespace".into(), &"Deny".into(), &false.into())
    );
    let from = json!({
        "principals": [{"Prefix": "cluster.local/ns/a/"}, {"Presence": null}],
        "notNamespaces": [{"Exact": "b"}, {"Suffix": "c"}], "sourceIps": ["10.0.0.0/8"],
    });
    let accounts = json!({"serviceAccounts": [
        {"namespace": "ns", "serviceAccount": "own"}, {"namespace": "x", "serviceAccount": "other"},
    ]});
    let to = json!({"destinationPorts": [80], "notDestinationPorts": [81]});
    let when = [json!({"namespaces": [{"Exact": "d"}]}), json!({"notDestinationPorts": [82]})];
    assert_eq!(first["rules"], json!([[[from, accounts], [to], [when[0]], [when[1]]], []]));
    assert_eq!(first["spec"]["rules"][0]["when"][0]["key"], "source.namespace");
    assert_eq!(dump["policies"][1]["action"], "Allow");
}

#[tokio::test]
async fn live_connections_are_shown_at_both_ends() {
    let world = World::new();
    let server = application(ip("127.77.42.6")).await;
    let client = pod("client", "127.77.42.5");
    let backend = endpoint(pod("backend", "127.77.42.6"), "server", 80, server.port());
    push(&world.store, &[&client, &backend], &[&service("server", &["10.96.0.8"], 80, None)]);
    world.serve(&client);
    world.serve(&backend);
    let mut stream = world.enter(&client, "10.96.0.8:80".parse().expect("an address")).await;
    greeting(&mut stream).await;
    let dump = dump(&world);
    let out = &dump["workloadState"]["Kubernetes//Pod/ns/client"];
    assert_eq!(out["state"], "Up");
    let info = json!({"name": "client", "namespace": "ns", "trustDomain": "cluster.local", "serviceAccount": "client"});
    assert_eq!(out["info"], info);
    let [connection] = out["connections"]["outbound"].as_array().expect("a list").as_slice() else { panic!("{out}") };
    assert_eq!(connection["originalDst"], "10.96.0.8:80");
    let into = &dump["workloadState"]["Kubernetes//Pod/ns/backend"]["connections"]["inbound"];
    let [connection] = into.as_array().expect("a list").as_slice() else { panic!("{into}") };
    assert_eq!((&connection["originalDst"], &connection["protocol"]), (&json!(server.to_string()), &json!("HBONE")));
    for key in ["src", "originalDst", "actualDst", "protocol"] {
        assert!(connection[key].is_string(), "{key}");
    }
}
