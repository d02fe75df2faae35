//! Findings about routes, at the place in the user's file, and the way of a route to its waypoint.

use ambit_api::load_text;
use ambit_mesh::{findings::codes, routes};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}
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
metadata: {name: bound, namespace: a, labels: {istio.io/use-waypoint: w}}
spec: {selector: {app: x}, ports: [{name: web, port: 80}, {name: db, port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: free, namespace: a}
spec: {selector: {app: x}, ports: [{port: 80}]}
---
";

fn route(spec: &str) -> String {
    format!(
        "{MESH}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn what_a_route_names_is_looked_up() {
    let bound = "parentRefs: [{group: '', kind: Service, name: bound}]";
    let cases = [
        (bound.to_owned(), None),
        ("parentRefs: [{name: w}]".to_owned(), Some((codes::ROUTE_NOT_APPLIED, "spec.parentRefs[0]"))),
        (
            "parentRefs: [{group: '', kind: Service, name: free}]".to_owned(),
            Some((codes::ROUTE_NOT_APPLIED, "spec.parentRefs[0].name")),
        ),
        (
            "parentRefs: [{group: '', kind: Service, name: gone}]".to_owned(),
            Some((codes::TARGET_NOT_FOUND, "spec.parentRefs[0].name")),
        ),
        (
            "parentRefs: [{group: '', kind: Service, name: bound, port: 81}]".to_owned(),
            Some((codes::TARGET_NOT_FOUND, "spec.parentRefs[0].port")),
        ),
        (
            "parentRefs: [{group: '', kind: Service, name: bound, sectionName: x}]".to_owned(),
            Some((codes::TARGET_NOT_FOUND, "spec.parentRefs[0].sectionName")),
        ),
        (
            format!("{bound}, rules: [{{backendRefs: [{{name: gone, port: 80}}]}}]"),
            Some((codes::TARGET_NOT_FOUND, "spec.rules[0].backendRefs[0].name")),
        ),
        (
            format!("{bound}, rules: [{{backendRefs: [{{name: free, port: 81}}]}}]"),
            Some((codes::TARGET_NOT_FOUND, "spec.rules[0].backendRefs[0].port")),
        ),
        (
            format!("{bound}, rules: [{{backendRefs: [{{kind: Bucket, group: x, name: b, port: 1}}]}}]"),
            Some((codes::TARGET_NOT_FOUND, "spec.rules[0].backendRefs[0].kind")),
        ),
    ];
    for (spec, wanted) in cases {
        let (inputs, _) = ambit_control_plane::local::preview(load_text("mesh.yaml", &route(&spec)));
        let all = ambit_mesh::findings::findings(&inputs);
        let found: Vec<_> = all.iter().filter(|finding| finding.object.kind == "HTTPRoute").collect();
        let found: Vec<_> = found.iter().map(|finding| (finding.code, finding.field.as_str())).collect();
        assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "{spec}");
    }
}

#[test]
fn a_section_name_is_the_name_of_a_port() {
    let spec = "parentRefs: [{group: '', kind: Service, name: bound, sectionName: db}]";
    let (inputs, _) = ambit_control_plane::local::preview(load_text("mesh.yaml", &route(spec)));
    let (name, service) = inputs.services.iter().find(|(name, _)| &*name.name == "bound").expect("there");
    let object = inputs.routes.values().next().expect("a route").get();
    assert_eq!(routes::ports(object, name, service), routes::Ports::These(vec![90]));
}
