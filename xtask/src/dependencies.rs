//! Licences and duplicates of the dependencies, from `cargo metadata` alone, so that it runs offline.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    process::Command,
};

use serde_json::Value;

/// Licences that code under Apache-2.0 may be linked with.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that stand in the tree in several versions because two dependencies disagree. A new one fails the check:
/// remove the cause, or add it here with what asks for the old version.
const DUPLICATES: &[(&str, &str)] = &[];

/// Checks every package that a build for Linux takes in.
///
/// # Errors
/// Names each package with a licence that isn't allowed and each unexpected duplicate.
pub fn check() -> Result<(), String> {
    let metadata = metadata()?;
    let packages = packages(&metadata)?;
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        let version = package["version"].as_str().unwrap_or_default();
        versions.entry(name).or_default().insert(version);
        match package["license"].as_str() {
            Some(licence) if allowed(licence) => {}
            licence => problems.push(format!("{name} {version}: licence {licence:?} is not on the list")),
        }
    }
    for (name, found) in versions.iter().filter(|(_, found)| found.len() > 1) {
        if !DUPLICATES.iter().any(|(known, _)| known == name) {
            problems.push(format!("{name} is built in several versions: {found:?}"));
        }
    }
    for (name, _) in DUPLICATES {
        if versions.get(name).is_none_or(|found| found.len() < 2) {
            problems.push(format!("{name} is listed as a duplicate and no longer is one; take it off the list"));
        }
    }
    if problems.is_empty() {
        println!("dependencies: {} packages, licences and duplicates checked", packages.len());
        Ok(())
    } else {
        Err(format!("dependencies:\n  {}", problems.join("\n  ")))
    }
}

fn metadata() -> Result<Value, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(crate::root())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))
}

/// The packages reached by normal and build dependencies from the shipped binary.
fn packages(metadata: &Value) -> Result<Vec<&Value>, String> {
    let list = |value: &'static str| move |node: &'_ Value| node[value].as_array().cloned().unwrap_or_default();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .ok_or("cargo metadata has no dependency graph")?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let all = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    let start = all.iter().find(|package| package["name"] == "ambit").and_then(|package| package["id"].as_str());
    let mut queue: Vec<String> = vec![start.ok_or("the workspace has no package `ambit`")?.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(id) = queue.pop() {
        let Some(node) = nodes.get(id.as_str()) else { continue };
        if !seen.insert(id) {
            continue;
        }
        for dependency in list("deps")(node) {
            let shipped = list("dep_kinds")(&dependency).iter().any(|kind| kind["kind"] != "dev");
            if let (true, Some(id)) = (shipped, dependency["pkg"].as_str()) {
                queue.push(id.to_owned());
            }
        }
    }
    Ok(all.iter().filter(|package| package["id"].as_str().is_some_and(|id| seen.contains(id))).collect())
}

/// True if the licence expression can be satisfied from the list. Understands `OR`, `AND`, `/`, `WITH` and parentheses
/// around alternatives, which is all that crates use.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    split(&expression, " AND ").iter().all(|part| {
        let part = part.trim();
        let inner = part.strip_prefix('(').and_then(|part| part.strip_suffix(')'));
        match inner {
            Some(inner) => allowed(inner),
            None => {
                let choices = split(part, " OR ");
                match choices.as_slice() {
                    [one] => ALLOWED.contains(&one.trim()),
                    many => many.iter().any(|choice| allowed(choice)),
                }
            }
        }
    })
}

/// Splits at the word, but not inside parentheses.
fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && at >= start && text[at..].starts_with(word) => {
                parts.push(&text[start..at]);
                start = at + word.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions_are_read_as_written() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "ISC AND (Apache-2.0 OR ISC)",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND MPL-2.0", ""] {
            assert!(!allowed(bad), "{bad}");
        }
    }
}
