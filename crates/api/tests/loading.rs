//! Files, folders and YAML itself: what is read, what is bounded, and that nothing a file holds can panic.

use std::{fs, path::PathBuf};

use ambit_api::{Loaded, Resource, codes, limits, load, load_text};
use proptest::prelude::*;

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.objects.iter().map(|object| object.resource.name()).collect()
}

fn codes_of(loaded: &Loaded) -> Vec<&str> {
    loaded.diagnostics.iter().map(|diagnostic| diagnostic.code).collect()
}

#[test]
fn the_example_loads_without_a_word() {
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/mlflow");
    let loaded = load(&[example]);
    assert_eq!(loaded.diagnostics, []);
    let count = |kind: &str| loaded.objects.iter().filter(|object| object.resource.kind() == kind).count();
    let kinds = ["Namespace", "ServiceAccount", "Pod", "Deployment", "Service", "Gateway", "AuthorizationPolicy"];
    assert_eq!(kinds.map(count), [3, 6, 5, 1, 1, 1, 2]);
    let policy = loaded.objects.iter().find(|object| object.resource.name() == "mlflow-traces-from-otel");
    let policy = policy.expect("complete-example.yaml holds it");
    assert_eq!(policy.reference().to_string(), "AuthorizationPolicy kagenti-system/mlflow-traces-from-otel");
    let Resource::AuthorizationPolicy(policy) = &policy.resource else { panic!("not a policy") };
    let rules = policy.spec.rules.as_ref().expect("has rules");
    let from = rules[0].from.as_ref().expect("has sources");
    assert_eq!(from[0].source.principals, ["cluster.local/ns/kagenti-system/sa/otel-collector"]);
}

#[test]
fn folders_are_read_sorted_and_hidden_files_are_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("c/deeper")).expect("folders");
    fs::create_dir_all(at(".git")).expect("folders");
    for (file, content) in [
        ("b.yml", namespace("b")),
        ("a.yaml", namespace("a")),
        ("c/deeper/c.yaml", namespace("c")),
        (".hidden.yaml", namespace("hidden")),
        (".git/x.yaml", namespace("git")),
        ("notes.txt", "not: yaml: at: all".to_owned()),
        ("real.sh", "#!/bin/sh".to_owned()),
    ] {
        fs::write(at(file), content).expect("written");
    }
    assert_eq!(names(&load(&[folder.path().to_owned()])), ["a", "b", "c"]);
    // A file that is named is read whatever its name, and nothing is read twice.
    fs::write(at("d.txt"), namespace("d")).expect("written");
    let loaded = load(&[at("d.txt"), at("b.yml"), folder.path().to_owned(), folder.path().join("c/..")]);
    assert_eq!(names(&loaded), ["d", "b", "a", "c"]);
    assert_eq!(loaded.diagnostics, []);
}

#[test]
fn paths_that_lead_nowhere_are_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let loaded = load(&[folder.path().join("missing"), folder.path().to_owned()]);
    assert_eq!(codes_of(&loaded), [codes::UNREADABLE_FILE, codes::NO_FILES]);
    assert!(loaded.has_errors());
    assert!(
        loaded.diagnostics[0].to_string().contains("missing: error[AMB0101] can't be read: "),
        "{}",
        loaded.diagnostics[0]
    );
    assert!(ambit_api::render(&loaded.diagnostics, false).contains("missing: can't be read: "));
}

#[cfg(unix)]
#[test]
fn a_folder_that_links_to_itself_ends() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).expect("a link");
    fs::write(folder.path().join("a.yaml"), namespace("a")).expect("written");
    let loaded = load(&[folder.path().to_owned()]);
    assert_eq!(names(&loaded), ["a"]);
    assert_eq!(loaded.diagnostics, []);
}

#[test]
fn folders_too_deep_are_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut deep = folder.path().to_owned();
    (0..=limits::MAX_FOLDER_DEPTH).for_each(|_| deep.push("x"));
    fs::create_dir_all(&deep).expect("folders");
    fs::write(deep.join("a.yaml"), namespace("a")).expect("written");
    assert_eq!(codes_of(&load(&[folder.path().to_owned()])), [codes::TOO_LARGE]);
}

#[test]
fn comments_empty_documents_marks_and_line_ends_are_fine() {
    let text =
        format!("\u{feff}# comment\n---\n---\n# only a comment\n---\n{}...\n---\n{}", namespace("a"), namespace("b"));
    for text in [text.clone(), text.replace('\n', "\r\n")] {
        let loaded = load_text("f", &text);
        assert_eq!((names(&loaded), &loaded.diagnostics[..]), (vec!["a", "b"], &[][..]));
        let place = loaded.objects[1].origin.place("").expect("written");
        assert_eq!((place.line, place.column), (13, 18), "{text:?}");
    }
    for nothing in ["", "\n", "# x", "---", "---\n---\n", "\u{feff}"] {
        assert_eq!(
            (load_text("f", nothing).objects.len(), load_text("f", nothing).diagnostics),
            (0, vec![]),
            "{nothing:?}"
        );
    }
}

#[test]
fn a_list_is_its_items_and_status_is_left_out() {
    let text = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n\
                - {apiVersion: v1, kind: Namespace, metadata: {name: a, creationTimestamp: null}, status: {phase: [1]}}\n\
                - {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p}, spec: {}, status: {x: 1}}\n\
                - {apiVersion: v1, kind: Namespace, metadata: {name: b, nme: 1}}\n";
    let loaded = load_text("f", text);
    assert_eq!(names(&loaded), ["a", "p", "b"]);
    assert_eq!(codes_of(&loaded), [codes::UNKNOWN_FIELD]);
    assert_eq!(loaded.diagnostics[0].field.as_deref(), Some("metadata.nme"));
    assert_eq!(loaded.diagnostics[0].line(), Some(7));
}

#[test]
fn aliases_are_expanded_within_bounds() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: &l {app: web}, annotations: *l}\n";
    let loaded = load_text("f", text);
    assert_eq!(loaded.diagnostics, []);
    let metadata = loaded.objects[0].resource.metadata().expect("a namespace has it");
    assert_eq!(metadata.labels, metadata.annotations);

    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let earlier = level - 1;
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{earlier}"); 10].join(", ")));
    }
    let started = std::time::Instant::now();
    assert_eq!(codes_of(&load_text("f", &bomb)), [codes::TOO_LARGE]);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    assert_eq!(codes_of(&load_text("f", "a: &a [*a]\n")), [codes::UNSUPPORTED_YAML]);
}

#[test]
fn every_limit_is_reached() {
    let deep = format!("{}{}", "[".repeat(limits::MAX_NESTING + 1), "]".repeat(limits::MAX_NESTING + 1));
    assert_eq!(codes_of(&load_text("f", &deep)), [codes::TOO_LARGE]);
    let deep_block: String = (0..=limits::MAX_NESTING).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    assert_eq!(codes_of(&load_text("f", &deep_block)), [codes::TOO_LARGE]);
    let large = format!("# {}", "x".repeat(limits::MAX_FILE_BYTES));
    assert_eq!(codes_of(&load_text("f", &large)), [codes::TOO_LARGE]);
    let documents = load_text("f", &"---\n".repeat(limits::MAX_DOCUMENTS + 1));
    assert_eq!(codes_of(&documents), [codes::TOO_LARGE]);
    let list = |items: &str| format!("apiVersion: v1\nkind: List\nitems: [{items}]\n");
    let ignored = "{apiVersion: v1, kind: ConfigMap},";
    let full = load_text("f", &list(&ignored.repeat(limits::MAX_OBJECTS_PER_FILE)));
    assert_eq!((full.diagnostics.len(), full.has_errors()), (limits::MAX_DIAGNOSTICS, false));
    let overfull = load_text("f", &list(&ignored.repeat(limits::MAX_OBJECTS_PER_FILE + 2)));
    assert_eq!((overfull.diagnostics.len(), overfull.has_errors()), (limits::MAX_DIAGNOSTICS + 1, true));
    assert_eq!(codes_of(&overfull).last(), Some(&codes::TOO_LARGE));
    let values = format!("[{}]", "a,".repeat(limits::MAX_NODES));
    assert_eq!(codes_of(&load_text("f", &values)), [codes::TOO_LARGE]);
}

#[test]
fn what_manifests_have_no_use_for_is_refused() {
    for text in
        ["a: !secret x", "a: !!binary eA==", "? [a]\n: b", "? {a: b}\n: c", "~: x", "a: &a b\n*a : c", "!x {a: b}"]
    {
        assert_eq!(codes_of(&load_text("f", text))[0], codes::UNSUPPORTED_YAML, "{text}");
    }
    let tagged = "apiVersion: v1\nkind: Namespace\nmetadata: {name: !!str 5}\n";
    assert_eq!(names(&load_text("f", tagged)), ["5"]);
}

#[test]
fn a_file_that_is_not_utf8_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.yaml");
    fs::write(&file, b"a: b\nc: \xff\n").expect("written");
    let loaded = load(&[file]);
    assert_eq!(codes_of(&loaded), [codes::NOT_UTF8]);
    assert!(loaded.diagnostics[0].message.contains("on line 2, offset 8"), "{}", loaded.diagnostics[0]);
}

#[test]
fn places_count_characters_and_bytes_rightly_beyond_ascii() {
    let text =
        "# ö ✓ 🦀\napiVersion: v1 # ü\nkind: Namespace\nmetadata: {name: a, labels: {\"ключ\": 'é', oops: \"x\"}}\n";
    let loaded = load_text("f", text);
    for label in ["ключ", "oops"] {
        let place = loaded.objects[0].origin.place(&format!("metadata.labels[{label}]")).expect("written");
        let written = if label == "oops" { "\"x\"" } else { "'é'" };
        assert_eq!(&place.source.text()[place.span.clone()], written);
        assert_eq!(place.line, 4);
    }
}

#[test]
fn messages_never_carry_terminal_controls() {
    let text = "apiVersion: \"v\\e[31m\"\nkind: \"K\\e]0;x\\a\"\nmetadata: {name: \"\\e[2J\"}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: \"\\e[2J\", \"\\e[1m\": 1}\nspec: {containers: [{name: \"\\eX\"}]}\n";
    let loaded = load_text("f", text);
    assert!(loaded.diagnostics.len() >= 3);
    for diagnostic in &loaded.diagnostics {
        let line = format!("{diagnostic} {}", diagnostic.help.as_deref().unwrap_or_default());
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    assert!(!ambit_api::render(&loaded.diagnostics, false).contains('\u{1b}'));
}

/// Pieces of which random documents come close enough to real ones to reach the depths of the loader.
fn fragment() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "apiVersion: v1\n",
        "apiVersion: security.istio.io/v1\n",
        "apiVersion: gateway.networking.k8s.io/v1\n",
        "kind: Pod\n",
        "kind: Service\n",
        "kind: List\n",
        "kind: AuthorizationPolicy\n",
        "kind: Gateway\n",
        "metadata:\n",
        "  name: a\n",
        "  labels: {a: b}\n",
        "spec:\n",
        "  rules:\n",
        "  - from:\n",
        "    - source:\n",
        "        principals: [\"*\"]\n",
        "  targetRefs:\n",
        "items:\n",
        "- ",
        "? ",
        ": ",
        "---\n",
        "...\n",
        "&a ",
        "*a ",
        "!!str ",
        "!x ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "# c\n",
        "\t",
        "\n",
        "\r\n",
        " ",
        "    ",
        "%YAML 1.2\n",
        "%TAG ! x\n",
        "<<: ",
        "~",
        "null",
        "0x",
        "1e9",
        "-.5",
        "é",
        "🦀",
        "\u{85}",
        "\u{2028}",
        "\\x",
        "\u{feff}",
        "@",
        "`",
        "- - - ",
        "a: b\n",
        "\"\\",
        ":\n",
    ];
    prop_oneof![8 => prop::sample::select(PIECES).prop_map(str::to_owned), 1 => "\\PC{0,6}", 1 => any::<char>().prop_map(String::from)]
}

/// Whatever was read, each diagnostic can be shown and points inside its file.
fn assert_sound(loaded: &Loaded) {
    for diagnostic in &loaded.diagnostics {
        if let Some(place) = &diagnostic.place {
            assert!(place.source.text().get(place.span.clone()).is_some(), "{diagnostic:?}");
        }
    }
    let drawn = ambit_api::render(&loaded.diagnostics, false);
    assert_eq!(drawn.is_empty(), loaded.diagnostics.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_fragments_are_read_without_panic(pieces in prop::collection::vec(fragment(), 0..40)) {
        assert_sound(&load_text("f", &pieces.concat()));
    }

    #[test]
    fn any_text_is_read_without_panic(text in "(?s).{0,200}") {
        assert_sound(&load_text("f", &text));
    }

    #[test]
    fn a_real_file_with_any_bytes_changed_is_read_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = include_bytes!("../../../examples/mlflow/complete-example.yaml").to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("a.yaml");
        fs::write(&file, bytes).expect("written");
        assert_sound(&load(&[file]));
    }
}
