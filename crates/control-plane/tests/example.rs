//! The MLflow example, from its files to what the proxies decide.

mod support;

use ambit_control_plane::local::{PodKind, PodPhase, ProbeKind, SessionRequest};
use ambit_mesh::view::{Gateway, ServiceKey};
use support::{mlflow_example, on_paths};

const NAMESPACE: &str = "kagenti-system";

#[tokio::test]
async fn it_loads_without_a_warning_and_plans_its_pods() {
    let mut mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    assert_eq!(mesh.local.diagnostics, []);

    let plans = [mesh.added().await, mesh.added().await];
    let app = plans.iter().find(|plan| plan.kind == PodKind::App).expect("mlflow");
    let waypoint = plans.iter().find(|plan| plan.kind != PodKind::App).expect("the waypoint");
    assert!(app.name.starts_with("mlflow-") && app.captured);
    assert_eq!(app.identity.to_string(), "spiffe://cluster.local/ns/kagenti-system/sa/mlflow");
    let container = &app.containers[0];
    assert_eq!(container.command.as_ref().map(|command| command[0].as_str()), Some("ambit"));
    let probe = container.readiness.as_ref().expect("a probe");
    assert_eq!(probe.kind, ProbeKind::Http { path: "/health".into(), port: 5000, headers: Vec::new() });
    assert_eq!(waypoint.kind, PodKind::Waypoint { gateway: "mlflow-waypoint".into() });
    assert_eq!(waypoint.identity.to_string(), "spiffe://cluster.local/ns/kagenti-system/sa/mlflow-waypoint");
    assert_eq!(waypoint.labels["gateway.networking.k8s.io/gateway-name"], "mlflow-waypoint");
    assert!(!waypoint.captured);

    let status = mesh.local.handle.status().await;
    assert_eq!(status.pods.iter().filter(|pod| pod.phase == PodPhase::Waiting).count(), 5);
    assert_eq!(status.services[0].waypoint.as_deref(), Some("kagenti-system/mlflow-waypoint"));
}

#[tokio::test]
async fn the_proxies_know_a_pod_before_it_is_made_and_send_to_it_when_it_is_ready() {
    let mut mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    let plans = [mesh.added().await, mesh.added().await];
    let app = plans.iter().find(|plan| plan.kind == PodKind::App).expect("mlflow");
    let waypoint = plans.iter().find(|plan| plan.kind != PodKind::App).expect("the waypoint");

    let key = ServiceKey { namespace: NAMESPACE.into(), hostname: "mlflow.kagenti-system.svc.cluster.local".into() };
    let view = mesh.store.load();
    let workload = view.workload(&app.uid).expect("known already");
    assert!(workload.hbone && !workload.healthy);
    assert_eq!((workload.guard[0].port, &*workload.guard[0].waypoint), (Some(5000), "kagenti-system/mlflow-waypoint"));
    assert_eq!(workload.guard[0].identity, waypoint.identity);
    let service = view.service(&key).expect("known");
    let Gateway::Service(by_waypoint) = &service.waypoint.as_ref().expect("bound").destination else {
        panic!("local waypoints are named by their services: {:?}", service.waypoint);
    };
    assert_eq!(view.endpoints(by_waypoint).len(), 1);
    assert!(view.endpoints(by_waypoint)[0].native_tunnel && !view.endpoints(by_waypoint)[0].healthy);
    assert_eq!(view.service(by_waypoint).expect("known").waypoint, None, "never behind a waypoint itself");
    assert_eq!(service.vips.len(), 1);
    assert_eq!(view.endpoints(&key).len(), 1, "the waiting pods don't serve");

    mesh.local.handle.set_ready(&waypoint.uid, true);
    mesh.local.handle.set_ready(&app.uid, true);
    mesh.until("both are healthy", |view| view.endpoints(&key)[0].healthy && view.endpoints(by_waypoint)[0].healthy)
        .await;
}

#[tokio::test]
async fn the_waypoint_decides_as_the_policies_say() {
    let mut mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    mesh.added().await;
    for (account, method, path, allowed) in [
        ("otel-collector", "POST", "/v1/traces", true),
        ("otel-collector", "GET", "/v1/traces", false),
        ("otel-collector", "POST", "/v1/traces/x", false),
        ("kagenti-ui", "GET", "/anything", true),
        ("kagenti-ui", "DELETE", "/", false),
        ("intruder", "POST", "/v1/traces", false),
    ] {
        let decision = mesh.waypoint_verdict(account, method, path);
        assert_eq!(decision.is_allowed(), allowed, "{account} {method} {path}: {decision:?}");
    }
}

#[tokio::test]
async fn a_stopped_waypoint_leaves_a_service_that_leads_nowhere() {
    let mut mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    let plans = [mesh.added().await, mesh.added().await];
    let waypoint = plans.iter().find(|plan| plan.kind != PodKind::App).expect("the waypoint");
    let name = mesh.local.handle.stop_pod(&waypoint.uid).await.expect("runs");
    let key =
        ServiceKey { namespace: NAMESPACE.into(), hostname: "mlflow-waypoint.kagenti-system.svc.cluster.local".into() };
    let view = mesh.store.load();
    assert!(view.service(&key).is_some() && view.endpoints(&key).is_empty());
    assert!(view.service_named(NAMESPACE, "mlflow").expect("known").waypoint.is_some(), "still asked for");
    assert_eq!(mesh.removed().await, waypoint.uid);
    assert!(mesh.local.handle.stop_pod(&waypoint.uid).await.is_err(), "stopped already");

    mesh.local.handle.start_pod(&name).await.expect("stopped");
    let again = mesh.added().await;
    assert_ne!(again.uid, waypoint.uid);
    assert_ne!(again.ip, waypoint.ip);
    assert_eq!(mesh.store.load().endpoints(&key).len(), 1);
}

#[tokio::test]
async fn a_session_takes_the_place_of_the_pod_that_waits_for_it() {
    let mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    let request = SessionRequest {
        namespace: NAMESPACE.into(),
        service_account: "otel-collector".into(),
        captured: true,
        stand_in: true,
        ..SessionRequest::default()
    };
    let handle = &mesh.local.handle;
    let plan = handle.add_session(request.clone()).await.expect("there is one");
    assert_eq!((plan.name.as_str(), plan.captured), ("otel-collector", true));
    assert_eq!(plan.kind, PodKind::Session { stands_in_for: Some("otel-collector".into()) });
    assert_eq!(plan.labels["app"], "otel-collector");
    let workload = mesh.store.load().workload_by_ip(plan.ip.into()).cloned().expect("known when it returns");
    assert_eq!((&*workload.uid, &workload.identity), (&*plan.uid, &plan.identity));

    let second = handle.add_session(request.clone()).await.expect("one of its own");
    assert_eq!(second.kind, PodKind::Session { stands_in_for: None });
    assert!(second.name.starts_with("session-"), "{}", second.name);

    handle.remove_session(&plan.uid).await;
    assert!(mesh.store.load().workload(&plan.uid).is_none());
    let third = handle.add_session(request).await.expect("it waits again");
    assert_eq!(third.name, "otel-collector");
    assert_ne!(third.uid, plan.uid);
}

#[tokio::test]
async fn a_session_without_the_mesh_is_not_captured() {
    let mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    let request = SessionRequest {
        namespace: NAMESPACE.into(),
        name: Some("outsider".into()),
        service_account: "default".into(),
        ..SessionRequest::default()
    };
    let plan = mesh.local.handle.add_session(request).await.expect("fits");
    assert!(!plan.captured && plan.name == "outsider");
    assert!(!mesh.store.load().workload(&plan.uid).expect("known").hbone);
}

#[tokio::test]
async fn sessions_that_cannot_be_are_refused() {
    let mesh = on_paths(vec![mlflow_example()]).expect("no errors");
    let app =
        mesh.local.handle.status().await.pods.into_iter().find(|pod| pod.name.starts_with("mlflow-")).expect("it");
    for (namespace, name, account, reason) in [
        ("nowhere", None, "default", "namespace `nowhere` isn't declared"),
        (NAMESPACE, None, "nobody", "service account `nobody` doesn't exist in namespace `kagenti-system`"),
        (NAMESPACE, None, "mlflow-waypoint", "the identity of a waypoint"),
        (NAMESPACE, Some(app.name.as_str()), "mlflow", "runs already"),
        (NAMESPACE, Some("otel-collector"), "kagenti-ui", "use `--sa otel-collector`"),
        (NAMESPACE, Some("../x"), "default", "can't be a pod's name"),
    ] {
        let request = SessionRequest {
            namespace: namespace.into(),
            name: name.map(str::to_owned),
            service_account: account.into(),
            captured: true,
            ..SessionRequest::default()
        };
        let error = mesh.local.handle.add_session(request).await.expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
}
