//! From Pods and Deployments to what must run, up to the limits.

mod support;

use std::time::Duration;

use ambit_control_plane::{
    limits::{MAX_PODS, MAX_REPLICAS},
    local::{ProbeKind, RestartPolicy, SessionError, SessionRequest},
};
use support::on_text;

const NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}
";

fn deployment(name: &str, replicas: usize) -> String {
    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: a}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers: [{{name: c, image: i, command: [server]}}]
"
    )
}

#[tokio::test]
async fn a_container_becomes_a_process_with_its_environment_and_probe() {
    let mut mesh = on_text(&format!(
        "{NAMESPACE}---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: a, labels: {{app: web}}}}
spec:
  restartPolicy: OnFailure
  containers:
    - name: server
      image: i
      command: [serve, --port]
      args: [$(PORT), $(UNSET), $$(PORT)]
      workingDir: /srv
      ports: [{{name: http, containerPort: 8080}}]
      env:
        - {{name: PORT, value: '8080'}}
        - {{name: URL, value: 'http://$(ADDRESS):$(PORT)'}}
        - {{name: ADDRESS, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        - {{name: WHO, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}
        - {{name: BACK, value: $(ADDRESS)}}
        - {{name: SECRET, valueFrom: {{secretKeyRef: {{name: s, key: k}}}}}}
      readinessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 2, failureThreshold: 5, initialDelaySeconds: 1}}
"
    ))
    .expect("no errors");
    let warnings: Vec<_> = mesh.local.diagnostics.iter().map(|diagnostic| diagnostic.message.as_str()).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("`SECRET` isn't set"), "{warnings:?}");

    let plan = mesh.added().await;
    assert_eq!((plan.name.as_str(), plan.captured, plan.restart_policy), ("web", true, RestartPolicy::OnFailure));
    let container = &plan.containers[0];
    let command = container.command.as_ref().expect("a command");
    assert_eq!(command, &["serve", "--port", "8080", "$(UNSET)", "$(PORT)"]);
    let ip = plan.ip.to_string();
    let env: Vec<_> = container.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let url = "http://$(ADDRESS):8080";
    assert_eq!(env, [("PORT", "8080"), ("URL", url), ("ADDRESS", &ip), ("WHO", "a"), ("BACK", &ip)]);
    assert_eq!(container.working_dir.as_deref(), Some(std::path::Path::new("/srv")));
    let probe = container.readiness.as_ref().expect("a probe");
    assert_eq!(probe.kind, ProbeKind::Tcp { port: 8080 });
    assert_eq!((probe.period, probe.initial_delay), (Duration::from_secs(2), Duration::from_secs(1)));
    assert_eq!((probe.timeout, probe.success_threshold, probe.failure_threshold), (Duration::from_secs(1), 1, 5));
}

#[tokio::test]
async fn a_probe_that_cannot_be_run_is_an_error_not_a_pod_that_is_always_ready() {
    let error = on_text(&format!(
        "{NAMESPACE}---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: a}}
spec: {{containers: [{{name: c, image: i, readinessProbe: {{httpGet: {{port: nowhere}}}}}}]}}
"
    ))
    .err()
    .expect("refused");
    assert!(error.diagnostics.iter().any(|diagnostic| diagnostic.code == "AMB2004"), "{:?}", error.diagnostics);
}

#[tokio::test]
async fn replicas_have_the_same_names_on_every_start() {
    let text = NAMESPACE.to_owned() + &deployment("web", 3);
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut mesh = on_text(&text).expect("no errors");
        let mut of_start = Vec::new();
        for _ in 0..3 {
            of_start.push(mesh.added().await.name.clone());
        }
        names.push(of_start);
    }
    assert_eq!(names[0], names[1]);
    let mut parts = names[0][0].strip_prefix("web-").expect("its owner's name").split('-');
    assert_eq!(parts.next().map(str::len), Some(10));
    assert_eq!(parts.next().map(str::len), Some(5));
    let other = NAMESPACE.to_owned() + &deployment("web", 3).replace("[server]", "[server, -v]");
    let mut mesh = on_text(&other).expect("no errors");
    assert!(!names[0].contains(&mesh.added().await.name), "another template, other names");
}

#[tokio::test]
async fn more_than_fits_is_refused() {
    let codes = |text: &str| match on_text(text) {
        Ok(_) => Vec::new(),
        Err(error) => error.diagnostics.iter().map(|diagnostic| diagnostic.code).collect(),
    };
    assert_eq!(codes(&(NAMESPACE.to_owned() + &deployment("web", MAX_REPLICAS))), Vec::<&str>::new());
    assert_eq!(codes(&(NAMESPACE.to_owned() + &deployment("web", MAX_REPLICAS + 1))), ["AMB2003"]);
    let many: String = (0..=MAX_PODS / MAX_REPLICAS).map(|i| deployment(&format!("web{i}"), MAX_REPLICAS)).collect();
    assert_eq!(codes(&(NAMESPACE.to_owned() + &many)), ["AMB2003"]);

    let full: String = (0..MAX_PODS / MAX_REPLICAS).map(|i| deployment(&format!("web{i}"), MAX_REPLICAS)).collect();
    let mesh = on_text(&(NAMESPACE.to_owned() + &full)).expect("just fits");
    let request = SessionRequest {
        namespace: "a".into(),
        service_account: "default".into(),
        captured: true,
        ..SessionRequest::default()
    };
    let refused = mesh.local.handle.add_session(request).await;
    assert!(matches!(refused, Err(SessionError::TooMany(_))), "{refused:?}");
}
