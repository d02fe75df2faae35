//! Where a waypoint sends requests, on a running mesh: subsets, limits of connections, endpoints that fail, and endpoints that
//! come and go under load.
#![forbid(unsafe_code)]

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ambit_tests::{Mesh, Place, answers::statuses, each_user};
use serde_json::Value;

/// How long every tenth request of the load takes.
const HELD: Duration = Duration::from_millis(50);
const ALICE: &[&str] = &["-n", "shop", "--sa", "alice"];

const BASE: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alice, namespace: shop}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
"#;

/// Requests for `/v2` go to the subset of that name; all others to any pod.
const SUBSETS: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: versions, namespace: shop}
spec:
  host: versions
  subsets: [{name: v2, labels: {version: v2}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: versions, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: "", name: versions}]
  rules:
    - matches: [{path: {value: /v2}}]
      backendRefs:
        - name: versions
          port: 80
          filters: [{type: ExtensionRef, extensionRef: {group: ambit.dev, kind: Subset, name: v2}}]
    - backendRefs: [{name: versions, port: 80}]
---
"#;

/// One connection at a time, and one request that waits for it.
const NARROW: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: narrow, namespace: shop}
spec:
  host: narrow
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}
---
"#;

const OUTLIERS: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mixed, namespace: shop}
spec:
  host: mixed
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 1h, maxEjectionPercent: 100}
---
"#;

/// A Service with one Deployment for each of these names, whose servers answer with this status.
fn service(place: &Place, name: &str, deployments: &[(&str, u16)]) -> String {
    let program = place.install(env!("CARGO_BIN_EXE_web").as_ref());
    let program = program.display();
    let mut documents = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {{istio.io/use-waypoint: gate}}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n"
    );
    for (version, status) in deployments {
        documents += &format!(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}-{version}, namespace: shop}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}, version: {version}}}}}
  template:
    metadata: {{labels: {{app: {name}, version: {version}}}}}
    spec:
      containers:
        - name: web
          command: ["{program}", serve, {version}, "0.0.0.0:8080", "{status}"]
          readinessProbe: {{httpGet: {{path: /health, port: 8080}}, periodSeconds: 1}}
---
"#
        );
    }
    documents
}

fn up<'a>(place: &'a Place, documents: &[&str]) -> Mesh<'a> {
    place.write("shop.yaml", &(BASE.to_owned() + &documents.concat()));
    Mesh::up(place, &["-f", "shop.yaml", "--waypoint-admin"])
}

fn bodies(answers: &[Value]) -> Vec<&str> {
    answers.iter().filter_map(|answer| answer["body"].as_str()).collect()
}

#[test]
fn destination_rules_hold_on_a_running_mesh() {
    each_user(|place| {
        let versions = service(place, "versions", &[("v1", 200), ("v2", 200)]);
        let narrow = service(place, "narrow", &[("only", 200)]);
        let mixed = service(place, "mixed", &[("good", 200), ("bad", 500)]);
        let mesh = up(place, &[&versions, SUBSETS, &narrow, NARROW, &mixed, OUTLIERS]);
        mesh.wait_for_pods(5);
        a_subset_is_chosen(&mesh);
        a_full_pool_refuses(&mesh);
        an_endpoint_that_fails_is_left_out(&mesh);
    });
}

fn a_subset_is_chosen(mesh: &Mesh<'_>) {
    let answers = mesh.ask(ALICE, "versions:80", &[("GET", "/v2"); 20]);
    assert_eq!(bodies(&answers), ["v2"; 20], "{answers:?}");
    let answers = mesh.ask(ALICE, "versions:80", &[("GET", "/any"); 40]);
    assert_eq!(statuses(&answers), [200; 40]);
    for version in ["v1", "v2"] {
        assert!(bodies(&answers).contains(&version), "{version} gets some of 40: {answers:?}");
    }
}

/// Of five at once one is served at a time and one waits; who finds no room hears it at once.
fn a_full_pool_refuses(mesh: &Mesh<'_>) {
    let answers: Vec<Value> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..5).map(|_| scope.spawn(|| mesh.ask(ALICE, "narrow:80", &[("GET", "/hold/1500")]).remove(0))).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    });
    let count = |status: u64| statuses(&answers).iter().filter(|found| **found == status).count();
    assert!(count(200) >= 1 && count(503) >= 1 && count(200) + count(503) == 5, "{answers:?}\n{}", mesh.printed());
    let metrics = mesh.operators("/stats/prometheus");
    let counted = metrics.lines().any(|line| {
        line.starts_with("istio_requests_total{")
            && ["narrow.shop", "response_code=\"503\"", "response_flags=\"UO\""].iter().all(|part| line.contains(part))
    });
    assert!(counted, "{metrics}");
}

fn an_endpoint_that_fails_is_left_out(mesh: &Mesh<'_>) {
    let answers = mesh.ask(ALICE, "mixed:80", &[("GET", "/"); 40]);
    let statuses = statuses(&answers);
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 3, "three in a row are enough: {statuses:?}");
    assert_eq!(bodies(&answers[20..]), ["good"; 20], "{answers:?}");
}

/// Endpoints are taken out of service, removed and brought back, and policies change, while clients ask: nobody sees an error.
/// Each endpoint is in service while a file of its name is there.
#[test]
fn endpoints_and_configuration_change_under_load_without_an_error() {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    each_user(|place| {
        let calm = service(place, "calm", &NAMES.map(|name| (name, 200)));
        let calm = NAMES.iter().fold(calm, |calm, name| {
            let (before, after) = calm.split_once("httpGet: {path: /health, port: 8080}").expect("a probe of each");
            let probe = format!("exec: {{command: [sh, -c, \"test -e '{}'\"]}}", place.write(name, "").display());
            format!("{before}{probe}, failureThreshold: 1{after}")
        });
        let without = |removed: Option<&str>, note: usize| {
            let policy = format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: churn, namespace: shop}}\n\
                 spec:\n  targetRefs: [{{kind: Service, group: '', name: calm}}]\n  action: DENY\n  \
                 rules: [{{to: [{{operation: {{paths: [/never/{note}]}}}}]}}]\n---\n"
            );
            let documents = calm.split("---\n").map(|document| match removed {
                Some(name) if document.contains(&format!("name: calm-{name},")) => {
                    document.replace("replicas: 1", "replicas: 0")
                }
                _ => document.to_owned(),
            });
            documents.collect::<Vec<_>>().join("---\n") + &policy
        };
        let mesh = up(place, &[&without(None, 0)]);
        mesh.wait_for_pods(3);
        let stops = AtomicBool::new(false);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| load(&mesh, &stops))).collect();
            for (n, name) in NAMES.into_iter().enumerate() {
                let edit = |removed, note| {
                    let mark = mesh.mark();
                    place.write("shop.yaml", &(BASE.to_owned() + &without(removed, note)));
                    mesh.wait_for_after("the edit is in force", mark);
                };
                let mark = mesh.mark();
                fs::remove_file(place.path(name)).expect("it was there");
                mesh.wait_for_after(" is not ready", mark);
                // What it was asked before is answered by then.
                thread::sleep(10 * HELD);
                edit(Some(name), 2 * n + 1);
                place.write(name, "");
                let mark = mesh.mark();
                edit(None, 2 * n + 2);
                mesh.wait_for_after(" is ready", mark);
            }
            stops.store(true, Ordering::SeqCst);
            let asked: usize = clients.into_iter().map(|client| client.join().expect("no failure")).sum();
            assert!(asked >= 200, "only {asked} requests");
        });
    });
}

/// Asks until told to stop, and returns how often. Every tenth request takes a while.
fn load(mesh: &Mesh<'_>, stops: &AtomicBool) -> usize {
    let held = format!("/hold/{}", HELD.as_millis());
    let requests: Vec<_> = (0..50).map(|n| ("GET", if n % 10 == 0 { &*held } else { "/" })).collect();
    let mut asked = 0;
    while !stops.load(Ordering::SeqCst) {
        let answers = mesh.ask(ALICE, "calm:80", &requests);
        let failed: Vec<_> = answers.iter().filter(|answer| answer["status"] != 200).collect();
        let said = mesh.printed();
        let said: String =
            said.lines().filter(|line| !line.starts_with("allow ")).map(|line| format!("{line}\n")).collect();
        assert!(failed.is_empty(), "{failed:?}\n{said}");
        asked += answers.len();
    }
    asked
}
