//! The same objects as files: plain manifests, and the templates of a Helm chart, in which the chart's values stand where the
//! settings are. Nothing but values and switches is used of Helm's language.

use ambit_api::to_yaml;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::{
    Settings, objects,
    objects::{OWNER, parts},
    settings::Words,
};

/// A number, which mustn't stand in quotes.
const REPLICAS: &str = "{{ .Values.controlPlane.replicas }}";

/// Names and contents of the chart's generated files, below its folder.
///
/// # Errors
/// As [`ambit_api::schema::definitions`].
pub fn files() -> Result<Vec<(String, String)>, serde_json::Error> {
    let words = Words {
        namespace: "{{ .Release.Namespace }}".to_owned(),
        image: "{{ .Values.image.name }}".to_owned(),
        pull_policy: "{{ .Values.image.pullPolicy }}".to_owned(),
        replicas: json!(REPLICAS),
        trust_domain: "{{ .Values.trustDomain }}".to_owned(),
        cluster_domain: "{{ .Values.clusterDomain }}".to_owned(),
        cluster_id: "{{ .Values.clusterId }}".to_owned(),
    };
    let mut files = Vec::new();
    for part in parts(&words) {
        let text = documents(&part.objects).replace(&format!("\"{REPLICAS}\""), REPLICAS);
        let text = match part.switch {
            Some(switch) => format!("{{{{- if .Values.{switch} }}}}\n{text}{{{{- end }}}}\n"),
            None => text,
        };
        files.push((format!("templates/{}", part.file), text));
    }
    for definition in ambit_api::schema::definitions()? {
        let name = definition.metadata.name.clone().unwrap_or_default();
        files.push((format!("crds/{name}.yaml"), to_yaml(&plain(&definition)?)));
    }
    Ok(files)
}

/// The objects of an installation as one file of YAML; `definitions` says whether the custom resource definitions and the
/// namespace stand before them.
///
/// # Errors
/// As [`ambit_api::schema::definitions`].
pub fn manifest(settings: &Settings, definitions: bool) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    if definitions {
        text += &self::definitions()?;
        text += &documents(&[namespace(settings)]);
    }
    Ok(text + &documents(&objects(settings)))
}

/// The custom resource definitions as YAML.
///
/// # Errors
/// As [`ambit_api::schema::definitions`].
pub fn definitions() -> Result<String, serde_json::Error> {
    let all: Result<Vec<_>, _> = ambit_api::schema::definitions()?.iter().map(plain).collect();
    Ok(documents(&all?))
}

pub(crate) fn namespace(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": settings.namespace, "labels": {OWNER.0: OWNER.1}},
    })
}

/// The definition as one writes it.
pub(crate) fn plain(definition: &CustomResourceDefinition) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(definition)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    Ok(value)
}

fn documents(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{}", to_yaml(object))).collect()
}
