//! The Gateway API's kinds, from the types of the `gateway-api` crate. Those have no bounds and no rules, which the webhook
//! makes up for where the mesh is meant.

use gateway_api::experimental::{
    gatewayclasses::GatewayClass, gateways::Gateway, grpcroutes::GrpcRoute, httproutes::HttpRoute,
    referencegrants::ReferenceGrant, tcproutes::TcpRoute, tlsroutes::TlsRoute,
    xbackendtrafficpolicies::XBackendTrafficPolicy,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{AGE, OWNER_LABEL, structural::structural};

/// The release of the Gateway API that the crate's types are made from, and its channel.
const BUNDLE: (&str, &str) = ("v1.5.1", "experimental");

pub(super) fn definitions() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    let class: &[_] = &[("Controller", ".spec.controllerName", "string"), ("Accepted", ACCEPTED, "string"), AGE];
    let gateway: &[_] = &[
        ("Class", ".spec.gatewayClassName", "string"),
        ("Address", ".status.addresses[*].value", "string"),
        ("Programmed", ".status.conditions[?(@.type==\"Programmed\")].status", "string"),
        AGE,
    ];
    let hosts: &[_] = &[("Hostnames", ".spec.hostnames", "string"), AGE];
    [
        definition::<GatewayClass>(&["v1", "v1beta1"], &["gc"], class),
        definition::<Gateway>(&["v1", "v1beta1"], &["gtw"], gateway),
        definition::<HttpRoute>(&["v1", "v1beta1"], &[], hosts),
        definition::<GrpcRoute>(&["v1"], &[], hosts),
        definition::<TlsRoute>(&["v1", "v1alpha3", "v1alpha2"], &[], &[AGE]),
        definition::<TcpRoute>(&["v1alpha2"], &[], &[AGE]),
        definition::<ReferenceGrant>(&["v1", "v1beta1"], &["refgrant"], &[AGE]),
        definition::<XBackendTrafficPolicy>(&["v1alpha1"], &["xbtrafficpolicy"], &[AGE]),
    ]
    .into_iter()
    .collect()
}

const ACCEPTED: &str = ".status.conditions[?(@.type==\"Accepted\")].status";

type Columns<'a> = &'a [(&'a str, &'a str, &'a str)];

/// The definition of a kind in all of its versions, which have one schema.
fn definition<K: CustomResourceExt>(
    versions: &[&str],
    short: &[&str],
    columns: Columns<'_>,
) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut definition = serde_json::to_value(K::crd())?;
    definition["metadata"]["labels"] = json!({OWNER_LABEL.0: OWNER_LABEL.1});
    definition["metadata"]["annotations"] = json!({
        "gateway.networking.k8s.io/bundle-version": BUNDLE.0,
        "gateway.networking.k8s.io/channel": BUNDLE.1,
        // The group is protected; this is what the Gateway API itself writes.
        "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/2997",
    });
    definition["spec"]["names"]["shortNames"] = json!(short);
    definition["spec"]["names"]["categories"] = json!(["gateway-api"]);
    let mut version = definition["spec"]["versions"][0].take();
    let schema = &mut version["schema"]["openAPIV3Schema"];
    structural(schema);
    merge_keyed_lists(schema);
    let columns: Vec<_> =
        columns.iter().map(|(name, path, kind)| json!({"name": name, "jsonPath": path, "type": kind})).collect();
    version["additionalPrinterColumns"] = json!(columns);
    let all = versions.iter().enumerate().map(|(index, name)| {
        let mut version = version.clone();
        version["name"] = json!(name);
        version["served"] = json!(true);
        version["storage"] = json!(index == 0);
        version
    });
    definition["spec"]["versions"] = Value::Array(all.collect());
    serde_json::from_value(definition)
}

/// Lists whose elements have names are maps to server-side apply, as in the Gateway API's own definitions: several may then
/// write into one.
fn merge_keyed_lists(schema: &mut Value) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else {
        if let Some(items) = schema.get_mut("items") {
            merge_keyed_lists(items);
        }
        return;
    };
    for (name, property) in properties {
        let key = match name.as_str() {
            "conditions" => Some("type"),
            "listeners" => Some("name"),
            _ => None,
        };
        let required =
            |key: &str| property["items"]["required"].as_array().is_some_and(|names| names.contains(&json!(key)));
        if let Some(key) = key.filter(|key| property["type"] == "array" && required(key)) {
            property["x-kubernetes-list-type"] = json!("map");
            property["x-kubernetes-list-map-keys"] = json!([key]);
        }
        merge_keyed_lists(property);
    }
}
