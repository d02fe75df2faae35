//! The files in `deploy` are what the code makes, and the chart renders the same objects as `ambit manifest`. With
//! `AMBIT_UPDATE=1` the files are written anew; with Helm's program in `HELM` (or on the path) it renders the chart, too.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use ambit_install::{Settings, chart};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn generated() -> Vec<(PathBuf, String)> {
    let chart = deploy().join("helm/ambit");
    let files = chart::files().expect("they can be written");
    let mut files: Vec<_> = files.into_iter().map(|(name, text)| (chart.join(name), text)).collect();
    let manifest = chart::manifest(&Settings::default(), false).expect("it can be written");
    files.push((deploy().join("manifests/ambit.yaml"), manifest));
    files.push((deploy().join("manifests/crds.yaml"), chart::definitions().expect("they can be written")));
    files
}

#[test]
fn the_files_are_what_the_code_makes() {
    for (path, text) in generated() {
        if env::var_os("AMBIT_UPDATE").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            fs::write(&path, &text).expect("it can be written");
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "`{}` isn't what the code makes; run with AMBIT_UPDATE=1", path.display());
    }
    for folder in ["helm/ambit/templates", "helm/ambit/crds"] {
        for entry in fs::read_dir(deploy().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let known = generated().iter().any(|(known, _)| known.file_name() == path.file_name());
            assert!(known, "`{}` is nobody's", path.display());
        }
    }
}

/// Settings with the values of the chart that mean the same.
fn choices() -> Vec<(Settings, Vec<(&'static str, String)>)> {
    let other = Settings {
        namespace: "mesh".to_owned(),
        image: "registry.example/ambit@sha256:00".to_owned(),
        pull_policy: "Always".to_owned(),
        replicas: 3,
        trust_domain: "example.org".to_owned(),
        cluster_domain: "internal".to_owned(),
        cluster_id: "west".to_owned(),
        ..Settings::default()
    };
    let bare = Settings {
        node_proxy: false,
        webhook: false,
        network_policy: false,
        gateway_classes: false,
        ..Settings::default()
    };
    let values = |settings: &Settings| {
        let of = |name: &'static str, value: &dyn ToString| (name, value.to_string());
        vec![
            of("image.name", &settings.image),
            of("image.pullPolicy", &settings.pull_policy),
            of("controlPlane.replicas", &settings.replicas),
            of("trustDomain", &settings.trust_domain),
            of("clusterDomain", &settings.cluster_domain),
            of("clusterId", &settings.cluster_id),
            of("nodeProxy.enabled", &settings.node_proxy),
            of("webhook.enabled", &settings.webhook),
            of("networkPolicy.enabled", &settings.network_policy),
            of("gatewayClasses.enabled", &settings.gateway_classes),
        ]
    };
    let changed = [other, bare].map(|settings| (settings.clone(), values(&settings)));
    [(Settings::default(), Vec::new())].into_iter().chain(changed).collect()
}

/// The chart's language is values and switches only, so putting the values in is all that rendering it means.
#[test]
fn the_chart_says_the_same_with_its_values_put_in() {
    for (settings, values) in choices().into_iter().skip(1) {
        let mut text = String::new();
        for (name, template) in chart::files().expect("they can be written") {
            if !name.starts_with("templates/") {
                continue;
            }
            let off = values.iter().any(|(name, value)| {
                value == "false" && template.starts_with(&format!("{{{{- if .Values.{name} }}}}\n"))
            });
            let body: Vec<_> = template.lines().filter(|line| !line.starts_with("{{-")).collect();
            text += &if off { String::new() } else { body.join("\n") + "\n" };
        }
        for (name, value) in &values {
            text = text.replace(&format!("{{{{ .Values.{name} }}}}"), value);
        }
        text = text.replace("{{ .Release.Namespace }}", &settings.namespace);
        assert!(!text.contains("{{"), "something is left: {text}");
        assert_eq!(unquoted(&text), unquoted(&chart::manifest(&settings, false).expect("it can be written")));
    }
}

/// What a template has to quote, a manifest may not have to.
fn unquoted(text: &str) -> String {
    text.replace('"', "")
}

#[test]
fn helm_renders_the_same_objects() {
    let helm = env::var_os("HELM").unwrap_or_else(|| "helm".into());
    if Command::new(&helm).arg("version").output().is_err() {
        eprintln!("SKIPPED: Helm isn't here; set HELM to its program");
        return;
    }
    let chart = deploy().join("helm/ambit");
    let lint = Command::new(&helm).args(["lint", "--strict"]).arg(&chart).output().expect("it runs");
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    for (settings, values) in choices() {
        let mut command = Command::new(&helm);
        command.args(["template", "ambit", "--kube-version", "1.35.0", "--namespace", &settings.namespace]).arg(&chart);
        for (name, value) in &values {
            command.args(["--set", &format!("{name}={value}")]);
        }
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rendered = String::from_utf8(output.stdout).expect("text");
        assert_eq!(objects(&rendered), objects(&chart::manifest(&settings, false).expect("it can be written")));
    }
    let wrong = ["--kube-version", "1.35.0", "--set", "nodeProxie.enabled=true"];
    let output = Command::new(&helm).arg("template").args(wrong).arg(&chart).output().expect("it runs");
    assert!(!output.status.success(), "a value that doesn't exist is refused");
}

/// The documents, sorted: Helm has an order of its own.
fn objects(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut documents: Vec<_> = lines.join("\n").split("---\n").map(|text| unquoted(text.trim())).collect();
    documents.retain(|document| !document.is_empty());
    documents.sort();
    documents
}
