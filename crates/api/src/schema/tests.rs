//! What must hold of every schema, without an API server. What a real one makes of them is in `tests/kube/tests/crds`.

use serde_json::Value;

use super::*;

fn all() -> Vec<Value> {
    let definitions = definitions().expect("Kubernetes has words for all of it");
    definitions.iter().map(|definition| serde_json::to_value(definition).expect("JSON")).collect()
}

#[test]
fn every_kind_that_the_mesh_reads_has_a_definition_in_its_versions() {
    let mut known = Vec::new();
    for definition in all() {
        let spec = &definition["spec"];
        let names = spec["versions"].as_array().expect("versions").iter().map(|version| version["name"].clone());
        known.push((spec["names"]["kind"].clone(), spec["group"].clone(), names.collect::<Vec<_>>()));
        let stored: Vec<_> =
            spec["versions"].as_array().expect("versions").iter().filter(|v| v["storage"] == true).collect();
        assert_eq!(stored.len(), 1, "{}", spec["names"]);
        assert_eq!(definition["metadata"]["labels"][OWNER_LABEL.0], OWNER_LABEL.1);
    }
    for (kind, group, versions) in crate::kinds::custom_kinds() {
        let found = known.iter().find(|(known, of, _)| known == kind && of == group);
        let (_, _, served) = found.unwrap_or_else(|| panic!("no definition of {kind}.{group}"));
        assert!(served.iter().any(|served| served == versions[0]), "{kind}: {served:?} lack {}", versions[0]);
    }
}

#[test]
fn schemas_are_structural() {
    for definition in all() {
        for version in definition["spec"]["versions"].as_array().expect("versions") {
            check(&version["schema"]["openAPIV3Schema"], &definition["metadata"]["name"].to_string());
        }
    }
}

fn check(schema: &Value, at: &str) {
    let typed = schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == true;
    assert!(typed || schema["x-kubernetes-preserve-unknown-fields"] == true, "{at} has no type: {schema}");
    for absent in ["$ref", "default", "nullable", "const", "anyOf"] {
        let int_or_string = schema["x-kubernetes-int-or-string"] == true;
        assert!(schema.get(absent).is_none() || int_or_string, "{at}: `{absent}`");
    }
    assert!(schema["properties"].is_null() || schema["additionalProperties"].is_null(), "{at}: both");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        check(property, &format!("{at}.{name}"));
    }
    for keyword in ["items", "additionalProperties"] {
        if !schema[keyword].is_null() {
            check(&schema[keyword], &format!("{at}.{keyword}"));
        }
    }
}

#[test]
fn bounds_stand_where_istio_has_them() {
    let definitions = all();
    let spec = |kind: &str| {
        let found = definitions.iter().find(|definition| definition["spec"]["names"]["kind"] == kind);
        found.expect(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
    };
    let policy = spec("AuthorizationPolicy");
    let at = |pointer: &str| policy.pointer(pointer).unwrap_or_else(|| panic!("{pointer}: {policy:#}")).clone();
    assert_eq!(at("/properties/action/enum"), serde_json::json!(["ALLOW", "DENY", "AUDIT", "CUSTOM"]));
    assert_eq!(at("/properties/action/type"), "string");
    assert_eq!(at("/properties/rules/maxItems"), 512);
    assert_eq!(at("/properties/targetRefs/maxItems"), 16);
    assert_eq!(at("/properties/targetRefs/items/properties/kind/maxLength"), 63);
    assert_eq!(at("/properties/targetRefs/items/required"), serde_json::json!(["kind", "name"]));
    assert_eq!(at("/properties/targetRef/properties/name/minLength"), 1);
    assert_eq!(at("/properties/selector/properties/matchLabels/additionalProperties/maxLength"), 63);
    let source = "/properties/rules/items/properties/from/items/properties/source";
    assert_eq!(at(&format!("{source}/properties/serviceAccounts/items/maxLength")), 320);
    assert_eq!(at(&format!("{source}/properties/serviceAccounts/maxItems")), 16);
    assert!(at(&format!("{source}/x-kubernetes-validations/0/rule")).is_string());
    assert!(at("/x-kubernetes-validations/0/rule").is_string());
    let tokens = spec("RequestAuthentication");
    assert!(tokens.pointer("/properties/jwtRules/items/properties/jwks_uri/maxLength").is_some(), "{tokens:#}");
}
