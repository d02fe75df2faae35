//! The golden cases through `ambit policy eval`: what a real Envoy decided, and where Ambit denies on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ambit_policy::Stricter;
use serde::Deserialize;

/// All of the public cases.
const CASES: usize = 19_277;

/// So many in a hundred may be denied on purpose.
const MAX_STRICTER_PERCENT: usize = 5;

#[test]
fn every_public_case_has_envoys_verdict_or_is_stricter_in_a_named_group() {
    let root = unpacked();
    let mut files: Vec<PathBuf> = entries(&root.path().join("public"));
    files.sort();
    let output = eval(&["--output", "jsonl"], &files);
    let summary = String::from_utf8(output.stderr).expect("text");
    let mut stricter: BTreeMap<String, usize> = BTreeMap::new();
    let mut judged = 0;
    for line in output.stdout.lines() {
        let line: Line = serde_json::from_str(&line.expect("text")).expect("a line for each case");
        judged += 1;
        assert!(!line.reason.is_empty(), "{}: no reason", line.id);
        match (line.expect.as_str(), line.got.as_str(), line.stricter) {
            (expect, got, None) => assert_eq!(expect, got, "{}: {}", line.id, line.reason),
            ("ALLOW", "DENY", Some(group)) => *stricter.entry(group).or_default() += 1,
            (expect, got, Some(group)) => panic!("{}: {expect} became {got} in group {group}", line.id),
        }
    }
    assert_eq!(judged, CASES);
    assert!(output.status.success(), "{summary}");
    assert_eq!(summary.lines().last(), Some(format!("{CASES} passed, 0 failed").as_str()));

    let total: usize = stricter.values().sum();
    assert!(total * 100 <= CASES * MAX_STRICTER_PERCENT, "too many are stricter: {stricter:#?}");
}

/// Cases over Istio's own test policies: they stay where they are and aren't copied.
#[test]
fn the_cases_over_istios_own_policies_pass_where_they_are_present() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/authz/istio");
    if !folder.is_dir() {
        eprintln!("SKIPPED: no cases at `{}`", folder.display());
        return;
    }
    let output = eval(&[], &entries(&folder));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && text.ends_with(" passed, 0 failed\n"), "{text}");
    assert!(!text.contains("\n0 passed"), "{text}");
}

#[test]
fn a_mismatch_is_printed_with_its_reason_and_fails() {
    let root = with_policy();
    let file = root.path().join("cases/all.jsonl");
    let lines = [case("right", "GET", "ALLOW"), case("wrong", "PUT", "ALLOW"), case("open", "GET", "DENY")];
    fs::write(&file, lines.join("\n")).expect("written");

    // The root is the folder above the file's by default.
    let output = eval(&[], std::slice::from_ref(&file));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(!output.status.success());
    assert!(!text.contains("right"), "{text}");
    assert!(text.contains("wrong (p.yaml): expected ALLOW, got DENY") && text.contains("method is `PUT`"), "{text}");
    assert!(text.contains("open (p.yaml): expected DENY, got ALLOW"), "{text}");
    assert_eq!(text.lines().last(), Some("1 passed, 2 failed"));

    let folder = root.path().to_str().expect("text");
    let output = eval(&["--root", folder, "--output", "jsonl"], &[file]);
    let first: serde_json::Value =
        serde_json::from_slice(output.stdout.split(|b| *b == b'\n').next().expect("a line")).expect("JSON");
    assert_eq!(
        first,
        serde_json::json!({
            "id": "right", "expect": "ALLOW", "got": "ALLOW", "policy": "a/p", "rule": 0,
            "reason": first["reason"], "stricter": null,
        })
    );
}

#[test]
fn a_line_that_is_no_case_is_named_with_its_column_and_field() {
    let root = with_policy();
    let good = case("good", "GET", "ALLOW");
    fs::write(root.path().join("broken.yaml"), "kind: [").expect("written");
    for (line, expected) in [
        (
            good.replace(r#""dest_port":80"#, r#""dest_port":70000"#),
            ":2:341: not a case: request.dest_port: invalid value",
        ),
        (good.replace("10.0.0.1", "10.0.0"), "not a case: request.source_ip: invalid IP address"),
        (good.replace(r#","expect":"ALLOW""#, ""), "not a case: missing field `expect`"),
        (
            good.replace(r#""kind":"Service""#, r#""kind":"Job""#),
            "not a case: target.service.kind: unknown variant `Job`",
        ),
        (good.replace(r#""waypoint":"#, r#""gateway":"#), ":2: target: it has neither `service` and `waypoint`"),
        (good.replace("p.yaml", "gone.yaml"), "gone.yaml: can't be read"),
        (good.replace("p.yaml", "broken.yaml"), ":2: policies: broken.yaml:1:8: error[AMB0104]"),
        ("hello".to_owned(), ":2:1: not a case: expected value"),
        (good.clone() + " x", "not a case: trailing characters"),
        (good[..100].to_owned(), ":2:100: not a case: "),
    ] {
        let file = root.path().join("cases/all.jsonl");
        fs::write(&file, format!("{good}\n{line}\n")).expect("written");
        let output = eval(&[], std::slice::from_ref(&file));
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(
            !output.status.success() && error.contains("all.jsonl:2:") && error.contains(expected),
            "{line}: {error}"
        );
    }
}

/// Groups of deliberate differences that the documentation explains, each with what Istio does, what Ambit does and why.
#[test]
fn the_documentation_explains_every_group_and_no_other() {
    let documented: BTreeSet<_> =
        include_str!("../../docs/differences-from-istio.md").lines().filter_map(group).collect();
    let known: BTreeSet<_> = Stricter::ALL.iter().map(|stricter| stricter.name()).collect();
    assert_eq!(documented, known);
}

/// The group that a row of a table begins with: ``| `group`: what | Istio | Ambit | why |``.
fn group(row: &str) -> Option<&str> {
    let (group, rest) = row.strip_prefix("| `")?.split_once("`: ")?;
    let cells: Vec<_> = rest.split(" | ").collect();
    assert!(cells.len() == 4 && cells.iter().all(|cell| cell.trim_matches([' ', '|']).len() > 1), "{row}");
    Some(group)
}

/// A folder with `p.yaml`, which allows GET on service `a/web`, and room for cases.
fn with_policy() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
                  spec: {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}\n";
    fs::create_dir_all(root.path().join("cases")).expect("a folder");
    fs::write(root.path().join("p.yaml"), policy).expect("written");
    root
}

fn case(id: &str, method: &str, expect: &str) -> String {
    format!(
        r#"{{"id":"{id}","policies":"p.yaml","target":{{"protocol":"http","service":{{"kind":"Service","name":"web","namespace":"a"}},"waypoint":{{"name":"w","namespace":"a"}},"rootNamespace":"istio-system","trustDomain":"cluster.local"}},"request":{{"principal":"spiffe://cluster.local/ns/a/sa/c","source_ip":"10.0.0.1","dest_ip":"10.96.0.1","dest_port":80,"method":"{method}","path":"/","host":"web"}},"expect":"{expect}"}}"#
    )
}

#[derive(Deserialize)]
struct Line {
    id: String,
    expect: String,
    got: String,
    reason: String,
    stricter: Option<String>,
}

/// A file of the archive.
#[derive(Deserialize)]
struct Packed {
    path: String,
    text: String,
}

fn unpacked() -> tempfile::TempDir {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/authz-public.jsonl.gz");
    let archive = fs::File::open(&archive).expect("the archive");
    let root = tempfile::tempdir().expect("a folder");
    for line in BufReader::new(flate2::read::GzDecoder::new(archive)).lines() {
        let Packed { path, text } = serde_json::from_str(&line.expect("text")).expect("a file");
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
        fs::write(path, text).expect("written");
    }
    root
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

fn eval(arguments: &[&str], files: &[PathBuf]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambit"));
    command.args(["policy", "eval"]).args(arguments).args(files).output().expect("it runs")
}
