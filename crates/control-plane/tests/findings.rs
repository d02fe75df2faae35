//! What is said about objects that don't fit together: code, severity, and where the caret points.

mod support;

use ambit_api::{Diagnostic, Severity};
use support::on_text;

const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: app, namespace: a}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: a}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: a, labels: {istio.io/use-waypoint: w}}
spec: {ports: [{port: 80, targetPort: 8080}], selector: {app: x}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: a, labels: {app: x}}
spec: {serviceAccountName: app, containers: [{name: c, image: i}]}
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: q, namespace: a}
spec:
";

async fn diagnostics(more: &str) -> Vec<Diagnostic> {
    match on_text(&format!("{BASE}---\n{more}")) {
        Ok(mesh) => mesh.local.diagnostics,
        Err(error) => error.diagnostics,
    }
}

/// The text under the caret.
fn pointed_at(diagnostic: &Diagnostic) -> &str {
    let place = diagnostic.place.as_ref().expect("a place");
    &place.source.text()[place.span.clone()]
}

#[tokio::test]
async fn objects_that_fit_together_have_nothing_said_about_them() {
    let fits = format!("{POLICY}  targetRefs: [{{group: '', kind: Service, name: s}}]\n");
    assert_eq!(diagnostics(&fits).await, []);
    assert_eq!(diagnostics("").await, []);
}

#[tokio::test]
async fn each_misfit_is_found_and_pointed_at() {
    let policy = |spec: &str| format!("{POLICY}  {spec}\n");
    let service = |name: &str, labels: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}\nspec: {{{spec}}}\n"
        )
    };
    let pod = |spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p2, namespace: a}}\nspec: {{{spec}, containers: [{{name: c, image: i}}]}}\n"
        )
    };
    let gateway = |name: &str, class: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\n\
             spec: {{gatewayClassName: {class}, listeners: [{{name: l, port: 80, protocol: HTTP}}]}}\n---\n"
        )
    };
    let pods = "selector: {app: x}, ports: [{port: 80";
    let cases = [
        (policy("targetRefs: [{kind: Service, name: gone}]"), Severity::Error, "AMB1101", "gone"),
        (
            policy("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gone}]"),
            Severity::Error,
            "AMB1101",
            "gone",
        ),
        (
            service("t", "", &format!("{pods}}}]")) + "---" + &policy("targetRefs: [{kind: Service, name: t}]"),
            Severity::Error,
            "AMB1102",
            "t",
        ),
        (
            gateway("ingress", "istio")
                + &policy("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: ingress}]"),
            Severity::Error,
            "AMB1102",
            "ingress",
        ),
        (
            policy("targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]"),
            Severity::Error,
            "AMB1102",
            "istio-waypoint",
        ),
        (service("t", "istio.io/use-waypoint: gone", &format!("{pods}}}]")), Severity::Error, "AMB1201", "gone"),
        (
            gateway("ingress", "istio") + &service("t", "istio.io/use-waypoint: ingress", &format!("{pods}}}]")),
            Severity::Error,
            "AMB1202",
            "ingress",
        ),
        (pod("serviceAccountName: nobody"), Severity::Error, "AMB1002", "nobody"),
        (pod("serviceAccountName: w"), Severity::Error, "AMB1003", "w"),
        (
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x, namespace: nowhere}\n".into(),
            Severity::Error,
            "AMB1001",
            "nowhere",
        ),
        (service("w", "", &format!("{pods}}}]")), Severity::Error, "AMB1208", "w"),
        (service("t", "", "ports: [{port: 80}], selector: {app: nothing}"), Severity::Warning, "AMB1207", "selector"),
        (service("t", "", &format!("{pods}, targetPort: 8080}}]")), Severity::Warning, "AMB1206", ""),
        (
            service("t", "istio.io/use-waypoint: w, ambit.dev/waypoint-guard: 'off'", &format!("{pods}}}]")),
            Severity::Warning,
            "AMB1205",
            "",
        ),
        (policy("selector: {matchLabels: {app: nothing}}"), Severity::Warning, "AMB1105", ""),
        (
            policy("rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/ap]}}]}]"),
            Severity::Warning,
            "AMB1106",
            "cluster.local/ns/a/sa/ap",
        ),
        (policy("rules: [{from: [{source: {serviceAccounts: [a/ap]}}]}]"), Severity::Warning, "AMB1106", "a/ap"),
        (policy("rules: [{to: [{operation: {methods: [GET]}}]}]"), Severity::Warning, "AMB1104", ""),
        (service("t", "", &format!("{pods}}}], clusterIP: 10.1.2.3")), Severity::Error, "AMB2001", "10.1.2.3"),
        (service("t", "", "type: ExternalName, externalName: x.example"), Severity::Warning, "AMB2005", "ExternalName"),
    ];
    for (text, severity, code, caret) in cases {
        let found = diagnostics(&text).await;
        let Some(diagnostic) = found.iter().find(|diagnostic| diagnostic.code == code) else {
            panic!("{code} is missing for\n{text}\nfound: {found:#?}")
        };
        assert_eq!(diagnostic.severity, severity, "{diagnostic}");
        assert!(diagnostic.help.is_some() || code == "AMB2005", "{diagnostic}: what to do?");
        if !caret.is_empty() {
            assert_eq!(pointed_at(diagnostic).trim_matches(['\'', '"']), caret, "{diagnostic}");
        }
        let worst = found.iter().map(|diagnostic| diagnostic.severity).max();
        assert_eq!(worst, Some(severity), "nothing worse: {found:#?}");
    }
}

#[tokio::test]
async fn accounts_that_need_no_declaration_are_not_missed() {
    for value in [
        "cluster.local/ns/a/sa/app",
        "cluster.local/ns/a/sa/default",
        "cluster.local/ns/a/sa/w",
        "cluster.local/ns/elsewhere/sa/x",
        "cluster.local/ns/a/sa/*",
        "*",
    ] {
        let found =
            diagnostics(&format!("{POLICY}  rules: [{{from: [{{source: {{principals: ['{value}']}}}}]}}]\n")).await;
        assert!(found.iter().all(|diagnostic| diagnostic.code != "AMB1106"), "{value}: {found:#?}");
    }
}

#[tokio::test]
async fn a_deployments_pods_are_reported_once_and_where_they_were_written() {
    let found = diagnostics(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: a}\nspec:\n  replicas: 3\n  \
         selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: \
         {serviceAccountName: nobody, containers: [{name: c, image: i}]}\n",
    )
    .await;
    let errors: Vec<_> = found.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    assert_eq!(errors.len(), 1, "{found:#?}");
    assert_eq!(errors[0].field.as_deref(), Some("spec.template.spec.serviceAccountName"));
    assert_eq!(pointed_at(errors[0]), "nobody");
}

#[tokio::test]
async fn the_cluster_ip_that_is_asked_for_is_given_once() {
    let service = |name: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}], selector: {{app: x}}}}\n"
        )
    };
    let mesh =
        on_text(&format!("{BASE}{}{}", service("t", "10.96.7.7"), service("headless", "None"))).expect("no errors");
    let status = mesh.local.handle.status().await;
    let vip = |name: &str| status.services.iter().find(|service| service.name == name).expect("it").vip;
    assert_eq!(vip("t"), Some(std::net::IpAddr::from([10, 96, 7, 7])));
    assert_eq!(vip("headless"), None);
    assert!(vip("s").is_some_and(|ip| ip != std::net::IpAddr::from([10, 96, 7, 7])));

    let twice = diagnostics(&(service("t", "10.96.7.7") + &service("u", "10.96.7.7"))).await;
    let error = twice.iter().find(|diagnostic| diagnostic.code == "AMB2001").expect("refused");
    assert!(error.message.contains("already that of service `a/t`"), "{error}");
}

#[tokio::test]
async fn a_port_that_no_waypoint_can_serve_is_an_error_only_behind_one() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: udp, namespace: a, labels: {LABELS}}\n\
        spec: {ports: [{port: 53, protocol: UDP}], selector: {app: x}}\n";
    for (labels, severity) in [("istio.io/use-waypoint: w", Severity::Error), ("", Severity::Warning)] {
        let found = diagnostics(&service.replace("LABELS", labels)).await;
        let about = found.iter().find(|diagnostic| pointed_at(diagnostic) == "UDP").expect("it is pointed at");
        assert_eq!(about.severity, severity, "{found:?}");
    }
}
