//! Licences and duplicates of the dependencies, from `cargo tree` alone, so that it runs offline.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    process::Command,
};

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
const DUPLICATES: &[(&str, &str)] = &[
    ("base64", "k8s-openapi"),
    ("foldhash", "saphyr-parser, by hashlink and hashbrown"),
    ("getrandom", "kube-runtime, by ahash"),
    ("hashbrown", "saphyr-parser, by hashlink"),
    ("pem", "kube-client"),
    ("syn", "derives that haven't moved to syn 3"),
    ("synstructure", "x509-parser, by asn1-rs-derive"),
    ("unicode-width", "miette"),
    ("untrusted", "aws-lc-rs"),
];

/// Checks every package that a build of the binary for Linux takes in.
///
/// # Errors
/// Names each package with a licence that isn't allowed and each unexpected duplicate.
pub fn check() -> Result<(), String> {
    let packages = packages()?;
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Package { name, version, licence } in &packages {
        versions.entry(name).or_default().insert(version);
        if !allowed(licence) {
            problems.push(format!("{name} {version}: licence `{licence}` is not on the list"));
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

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    licence: String,
}

/// What `cargo tree` says is built: unlike `cargo metadata` it leaves out what no enabled feature asks for.
fn packages() -> Result<BTreeSet<Package>, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--package", "ambit", "--edges", "normal,build", "--prefix", "none"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--format", "{p}|{l}"])
        .current_dir(crate::root())
        .output()
        .map_err(|error| format!("cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo tree: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: BTreeSet<Package> = text.lines().filter_map(package).collect();
    if packages.is_empty() { Err("cargo tree named no packages".to_owned()) } else { Ok(packages) }
}

/// One line: `name vVERSION (where it is from)|LICENCE`, with ` (*)` behind it when it stood above already.
fn package(line: &str) -> Option<Package> {
    let (package, licence) = line.split_once('|')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?);
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: licence.trim_end_matches(" (*)").to_owned(),
    })
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
