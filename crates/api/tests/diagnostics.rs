//! One golden test per class of diagnostic: the line a terminal shows, with its file, line and column, and the help.

use ambit_api::{Diagnostic, Loaded, Resource, Severity, load_text, render};

/// Loads `text` as `mesh.yaml` and gives each diagnostic as `line` and `help`.
fn lines(text: &str) -> Vec<String> {
    load_text("mesh.yaml", text).diagnostics.iter().map(line).collect()
}

fn line(diagnostic: &Diagnostic) -> String {
    match &diagnostic.help {
        Some(help) => format!("{diagnostic} => {help}"),
        None => diagnostic.to_string(),
    }
}

#[track_caller]
fn expect(text: &str, expected: &[&str]) {
    assert_eq!(lines(text), expected);
}

/// A policy in namespace `a` with this `spec`, each line of which starts on line 6 of the file.
fn policy(spec: &str) -> String {
    let mut text =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: a\n"
            .to_owned();
    text.push_str("spec:\n");
    for line in spec.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

#[test]
fn bad_yaml_is_placed_and_what_stands_before_it_is_kept() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [1, 2\nname: x\n";
    let loaded = load_text("mesh.yaml", text);
    assert_eq!(loaded.objects.len(), 1);
    let [only] = &loaded.diagnostics[..] else { panic!("{:?}", loaded.diagnostics) };
    assert_eq!((only.code, only.severity, only.line()), ("AMB0104", Severity::Error, Some(7)));
    assert!(only.message.starts_with("not well-formed YAML: "), "{only}");
    assert_eq!(
        only.help.as_deref(),
        Some(
            "look at the indentation, quotes and brackets here and on the line before; the list that starts on line 5 is still open"
        )
    );
}

#[test]
fn tabs_and_control_characters_are_refused() {
    assert!(load_text("f", "kind: a\n\tname: b\n").has_errors());
    expect(
        "kind: a\nb: \u{0}\n---\napiVersion: v1\n",
        &["mesh.yaml:2:4: error[AMB0104] not well-formed YAML: control character U+0000 => remove it; inside double \
           quotes it can be written as an escape"],
    );
}

#[test]
fn wrong_types_name_the_field_and_the_remedy() {
    expect(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n  namespace: a\n  labels:\n    ambit.dev/waypoint-guard: off\n\
         spec: {ports: [{port: 80}]}\n",
        &[
            "mesh.yaml:7:31: error[AMB0205] Service a/s: metadata.labels[ambit.dev/waypoint-guard]: expected text, found the \
           boolean `false` => put quotes around it: without them YAML reads a boolean or a number",
        ],
    );
    expect(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n    - port: \"80\"\n",
        &[
            "mesh.yaml:6:13: error[AMB0205] Service default/s: spec.ports[0].port: expected a whole number, found the text \
           `80` => write it without quotes",
        ],
    );
    expect(
        &policy("rules:\n  from:\n    - source: {namespaces: [a]}"),
        &[
            "mesh.yaml:7:3: error[AMB0205] AuthorizationPolicy a/p: spec.rules: expected a list, found a mapping => start \
           each entry with `- `",
        ],
    );
    expect(
        &policy("action: REFUSE"),
        &[
            "mesh.yaml:7:11: error[AMB0205] AuthorizationPolicy a/p: spec.action: `REFUSE` is not one of its values => use \
           one of: ALLOW, DENY, AUDIT, CUSTOM",
        ],
    );
    expect(
        &policy("rules:\n-"),
        &[
            "mesh.yaml:8:4: error[AMB0205] AuthorizationPolicy a/p: spec.rules[0]: expected a mapping, found nothing => give \
           it a value, or remove the line",
        ],
    );
    expect(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  listeners: []\n",
        &[
            "mesh.yaml:4:1: error[AMB0205] Gateway default/g: spec.gatewayClassName: `gatewayClassName` is missing => add \
           `gatewayClassName`",
        ],
    );
}

#[test]
fn unknown_fields_are_all_reported_with_the_nearest_name() {
    expect(
        &policy("rules:\n  - from:\n      - source:\n          principal: [\"*\"]\n    wehn: 1\nselectr: {}"),
        &[
            "mesh.yaml:10:13: error[AMB0206] AuthorizationPolicy a/p: spec.rules[0].from[0].source.principal: there is no \
             field `principal` here => did you mean `principals`?",
            "mesh.yaml:11:7: error[AMB0206] AuthorizationPolicy a/p: spec.rules[0].wehn: there is no field `wehn` here => \
             did you mean `when`?",
            "mesh.yaml:12:3: error[AMB0206] AuthorizationPolicy a/p: spec.selectr: there is no field `selectr` here => did \
             you mean `selector`?",
            "mesh.yaml:9:11: error[AMB0313] AuthorizationPolicy a/p: spec.rules[0].from[0].source: `source` has no field \
             with a value => a source without fields would mean anyone; leave `from` out to say so, or add `principals`",
        ],
    );
    expect(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, team: x}\nspec:\n  serviceAccount_name: x\n  containers: [{name: c, \
         imagee: i}]\n",
        &[
            "mesh.yaml:3:21: error[AMB0206] Pod default/p: metadata.team: there is no field `team` here => the fields here \
             are `annotations`, `creationTimestamp`, `deletionGracePeriodSeconds`, `deletionTimestamp`, `finalizers`, \
             `generateName`, `generation`, `labels`, `managedFields`, `name`, `namespace`, `ownerReferences`, \
             `resourceVersion`, `selfLink`, `uid`",
            "mesh.yaml:5:3: error[AMB0206] Pod default/p: spec.serviceAccount_name: there is no field \
             `serviceAccount_name` here => did you mean `serviceAccountName`?",
            "mesh.yaml:6:26: error[AMB0206] Pod default/p: spec.containers[0].imagee: there is no field `imagee` here => \
             did you mean `image`?",
        ],
    );
}

#[test]
fn a_key_written_twice_is_refused() {
    expect(
        &policy("rules:\n- {}\nrules: []"),
        &[
            "mesh.yaml:9:3: error[AMB0105] the key `rules` is already in this mapping => keep one of the two; YAML doesn't \
           say which one would count",
        ],
    );
}

#[test]
fn a_target_whose_group_is_not_its_kinds_is_refused() {
    expect(
        &policy("targetRefs:\n- {kind: Service, group: apps, name: s}\nrules: [{}]"),
        &[
            "mesh.yaml:8:28: error[AMB0307] AuthorizationPolicy a/p: spec.targetRefs[0].group: a Service is in the core group, \
           not `apps` => write `group: \"\"`, or leave it out",
        ],
    );
    expect(
        &policy("targetRefs:\n- kind: Gateway\n  name: w\nrules: [{}]"),
        &[
            "mesh.yaml:8:5: error[AMB0307] AuthorizationPolicy a/p: spec.targetRefs[0].group: a Gateway is in the group \
           `gateway.networking.k8s.io`, not the core group => write `group: gateway.networking.k8s.io`",
        ],
    );
    for group in ["group: \"\", ", "", "group: core, "] {
        expect(&policy(&format!("targetRefs: [{{{group}kind: Service, name: s}}]\nrules: [{{}}]")), &[]);
    }
    expect(
        &policy("targetRefs: [{kind: service, name: s}, {kind: Secret, name: s}, {kind: Service}]\nrules: [{}]"),
        &[
            "mesh.yaml:7:23: error[AMB0307] AuthorizationPolicy a/p: spec.targetRefs[0].kind: there is no kind `service` => \
             did you mean `Service`?",
            "mesh.yaml:7:49: error[AMB0307] AuthorizationPolicy a/p: spec.targetRefs[1].kind: a policy can't be attached to \
             a `Secret` => use one of: Service, ServiceEntry, Gateway, GatewayClass",
            "mesh.yaml:7:68: error[AMB0305] AuthorizationPolicy a/p: spec.targetRefs[2].name: a target needs a name => add \
             `name`",
        ],
    );
}

#[test]
fn a_target_in_another_namespace_is_refused() {
    expect(
        &policy("targetRefs:\n- kind: Service\n  name: s\n  namespace: b\nrules: [{}]"),
        &[
            "mesh.yaml:10:16: error[AMB0306] AuthorizationPolicy a/p: spec.targetRefs[0].namespace: a target in another \
           namespace, `b`: references don't cross namespaces => move the policy to namespace `b` and remove this line",
        ],
    );
}

#[test]
fn selector_and_targets_together_are_refused() {
    expect(
        &policy("selector: {matchLabels: {app: x}}\ntargetRefs: [{kind: Service, name: s}]\nrules: [{}]"),
        &[
            "mesh.yaml:8:3: error[AMB0301] AuthorizationPolicy a/p: spec.targetRefs: only one of `selector`, `targetRef` and \
           `targetRefs` can be set, and `selector` is set too => keep `targetRefs` for a Service behind a waypoint, or \
           `selector` for pods; write two policies for both",
        ],
    );
}

#[test]
fn two_services_with_one_name_name_both_places() {
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: mlflow, namespace: a}\nspec: {ports: [{port: 80}]}\n";
    expect(
        &format!("{service}---\n{service}"),
        &[
            "mesh.yaml:8:18: error[AMB0207] Service a/mlflow: metadata.name: a second Service with this name; the first is at \
           mesh.yaml:3:18 => remove or rename one of the two",
        ],
    );
    let other = service.replace("namespace: a", "namespace: b");
    expect(&format!("{service}---\n{other}"), &[]);
}

#[test]
fn a_waypoint_with_another_port_or_protocol_is_refused() {
    let gateway = |class: &str, port: &str, protocol: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: w\n  namespace: a\nspec:\n  \
             gatewayClassName: {class}\n  listeners:\n    - name: mesh\n      port: {port}\n      protocol: {protocol}\n"
        )
    };
    expect(
        &gateway("istio-waypoint", "15009", "HTTP"),
        &[
            "mesh.yaml:10:13: error[AMB0401] Gateway a/w: spec.listeners[0].port: a waypoint listens on port 15008, not \
             15009 => write `port: 15008`",
            "mesh.yaml:11:17: error[AMB0402] Gateway a/w: spec.listeners[0].protocol: a waypoint speaks HBONE, not `HTTP` \
             => write `protocol: HBONE`",
        ],
    );
    expect(&gateway("istio-waypoint", "15008", "HBONE"), &[]);
    expect(&gateway("istio", "80", "HTTP"), &[]);
}

#[test]
fn mesh_labels_take_only_their_values() {
    let labelled = |kind: &str, label: &str, value: &str| {
        format!(
            "apiVersion: v1\nkind: {kind}\nmetadata:\n  name: x\n  labels:\n    {label}: {value}\nspec: {{ports: [{{port: 1}}]}}\n"
        )
    };
    expect(
        &labelled("Service", "ambit.dev/waypoint-guard", "\"maybe\""),
        &[
            "mesh.yaml:6:31: error[AMB0210] Service default/x: metadata.labels[ambit.dev/waypoint-guard]: `maybe` means \
           nothing for `ambit.dev/waypoint-guard` => use one of: on, off, enforce",
        ],
    );
    expect(&labelled("Service", "ambit.dev/waypoint-guard", "\"off\""), &[]);
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: w\n  labels: \
                   {istio.io/waypoint-for: everything}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: [{name: mesh, port: \
                   15008, protocol: HBONE}]\n";
    expect(
        gateway,
        &[
            "mesh.yaml:5:35: error[AMB0210] Gateway default/w: metadata.labels[istio.io/waypoint-for]: `everything` means \
           nothing for `istio.io/waypoint-for` => use one of: service, workload, all, none",
        ],
    );
}

#[test]
fn a_dry_run_that_is_not_a_boolean_is_refused() {
    let text = |value: &str| {
        policy("rules: [{}]")
            .replace("  namespace: a\n", &format!("  namespace: a\n  annotations: {{istio.io/dry-run: {value}}}\n"))
    };
    expect(
        &text("\"yes\""),
        &[
            "mesh.yaml:6:35: error[AMB0329] AuthorizationPolicy a/p: metadata.annotations[istio.io/dry-run]: `yes` is not a \
           boolean => write \"true\" or \"false\"",
        ],
    );
    for word in ["\"1\"", "\"t\"", "\"TRUE\"", "\"false\""] {
        expect(&text(word), &[]);
    }
}

#[test]
fn documents_that_are_no_objects_and_kinds_of_others() {
    expect(
        "just text\n---\nkind: Pod\n---\napiVersion: v1\nkind: Pod\nmetadata: {}\n",
        &[
            "mesh.yaml:1:1: error[AMB0201] not a Kubernetes object => every document needs `apiVersion`, `kind` and \
             `metadata.name`; documents are separated by `---`",
            "mesh.yaml:3:7: error[AMB0201] apiVersion: `apiVersion` is missing => every document needs `apiVersion`, `kind` \
             and `metadata.name`; documents are separated by `---`",
            "mesh.yaml:7:1: error[AMB0201] metadata.name: this `Pod` has no name => add `metadata.name`",
        ],
    );
    let object = |version: &str, kind: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n");
    expect(&object("v1", "ConfigMap"), &["mesh.yaml:2:7: note[AMB0202] ConfigMap x: `ConfigMap` of `v1` is ignored"]);
    expect(
        &object("policy.linkerd.io/v1", "AuthorizationPolicy"),
        &[
            "mesh.yaml:2:7: note[AMB0202] AuthorizationPolicy x: `AuthorizationPolicy` of `policy.linkerd.io/v1` is ignored",
        ],
    );
    expect(
        &object("security.istio.io/v1", "WorkloadIdentity"),
        &[
            "mesh.yaml:2:7: warning[AMB0202] WorkloadIdentity x: `WorkloadIdentity` of `security.istio.io/v1` is ignored \
           => what it demands is not enforced here",
        ],
    );
    expect(
        &object("security.istio.io/v1", "AuthorisationPolicy"),
        &[
            "mesh.yaml:2:7: error[AMB0203] kind: `security.istio.io/v1` has no kind `AuthorisationPolicy` => did you mean \
           `AuthorizationPolicy`?",
        ],
    );
    expect(
        &object("security.istio.oi/v1", "AuthorizationPolicy"),
        &["mesh.yaml:1:13: error[AMB0204] apiVersion: `AuthorizationPolicy` is not in the API group of \
           `security.istio.oi/v1` => write `apiVersion: security.istio.io/v1`"],
    );
    expect(
        &object("apps/v1beta1", "Deployment"),
        &[
            "mesh.yaml:1:13: error[AMB0204] apiVersion: `Deployment` has no version `v1beta1` => write `apiVersion: apps/v1`",
        ],
    );
    expect(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: []\n",
        &[
            "mesh.yaml:2:7: error[AMB0203] kind: `AuthorizationPolicyList` is what a cluster answers, not what one writes => \
           write `apiVersion: v1` and `kind: List`",
        ],
    );
}

#[test]
fn names_that_kubernetes_refuses() {
    expect(
        "apiVersion: v1\nkind: Service\nmetadata: {name: 1st, namespace: B}\nspec: {ports: [{port: 80}]}\n",
        &[
            "mesh.yaml:3:18: error[AMB0208] Service B/1st: metadata.name: `1st` is not a name: a Service's name starts with \
             a letter => use lower-case letters, digits and `-`, with a letter or digit at both ends",
            "mesh.yaml:3:34: error[AMB0208] Service B/1st: metadata.namespace: `B` is not the name of a namespace: `B` can't \
             be in it => use lower-case letters, digits and `-`, with a letter or digit at both ends",
        ],
    );
}

#[test]
fn the_drawing_shows_the_line_with_a_caret_and_the_help() {
    let loaded = load_text("mesh.yaml", &policy("rules:\n- to:\n  - operation:\n      methodz: [GET]"));
    let drawn = render(&loaded.diagnostics[..1], false);
    let expected = "AMB0206

  × AuthorizationPolicy a/p: spec.rules[0].to[0].operation.methodz: there is no field `methodz` here
    ╭─[mesh.yaml:10:9]
  9 │     - operation:
 10 │         methodz: [GET]
    ·         ───────
    ╰────
  help: did you mean `methods`?
";
    assert_eq!(drawn, expected);
    assert!(render(&loaded.diagnostics[..1], true).contains("\u{1b}["));
}

#[test]
fn a_diagnostic_is_json_for_programs() {
    let loaded = load_text("mesh.yaml", &policy("action: 5"));
    let json = serde_json::to_value(&loaded.diagnostics[0]).expect("a diagnostic is plain data");
    assert_eq!(
        json,
        serde_json::json!({
            "severity": "error",
            "code": "AMB0205",
            "message": "expected text, found the number `5`",
            "help": "put quotes around it: without them YAML reads a boolean or a number",
            "object": {"kind": "AuthorizationPolicy", "namespace": "a", "name": "p"},
            "field": "spec.action",
            "file": "mesh.yaml",
            "line": 7,
            "column": 11,
        })
    );
}

#[test]
fn later_stages_point_into_the_file_too() {
    let Loaded { objects, diagnostics, .. } = load_text(
        "mesh.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n  labels:\n    istio.io/use-waypoint: w\nspec:\n  ports:\n  - port: 80\n",
    );
    assert_eq!(diagnostics, []);
    let Resource::Service(service) = &objects[0].resource else { panic!("{objects:?}") };
    assert_eq!(service.metadata.namespace.as_deref(), Some("default"));
    let origin = &objects[0].origin;
    let at = |field: &str| origin.place(field).map(|place| (place.line, place.column)).expect("written in a file");
    assert_eq!(at("metadata.labels[istio.io/use-waypoint]"), (6, 28));
    assert_eq!(at("metadata.labels[\"istio.io/use-waypoint\"]"), (6, 28));
    assert_eq!(at("spec.ports[0].port"), (9, 11));
    assert_eq!(at("spec.ports[0].targetPort"), (9, 5), "the nearest ancestor is the port");
    assert_eq!(at("spec.ports[7]"), (8, 3), "the nearest ancestor is the list, at its key");
    assert_eq!(at(""), (4, 9), "the object is at its name");
    assert!(origin.is_written("spec.ports[0]") && !origin.is_written("spec.type"));
    let diagnostic = origin.diagnostic(Severity::Warning, "AMB1999", "", "says something", "");
    assert_eq!(diagnostic.to_string(), "mesh.yaml:4:9: warning[AMB1999] Service default/s: says something");
}
