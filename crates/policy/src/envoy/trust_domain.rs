//! Trust-domain aliases in principals (`spec/authorization.md` 2.6).

/// The trust domain that always means the mesh's own.
const LOCAL: &str = "cluster.local";

/// `td`, `ns`, the namespace, `sa`, the account.
const FULL_PRINCIPAL_PARTS: usize = 5;

/// The values that one value of `principals` stands for: itself, or the same workload in each of the mesh's trust
/// domains if its own is one of them.
///
/// A trust domain with a `*` at an end is one of them if it matches one; where it is `*suffix`, it stays as it is for
/// those that it matches.
pub(super) fn expand(value: &str, known: &[String]) -> Vec<String> {
    let parts: Vec<_> = value.split('/').collect();
    let (Some(domain), FULL_PRINCIPAL_PARTS) = (parts.first().copied(), parts.len()) else {
        return vec![value.to_owned()];
    };
    let is_ours =
        domain == LOCAL || known.iter().any(|k| k == domain || has_suffix(k, domain) || has_prefix(k, domain));
    if domain == "*" || !is_ours {
        return vec![value.to_owned()];
    }
    let rest = &value[domain.len()..];
    let mut expanded = Vec::new();
    for ours in known {
        let meant = if has_suffix(ours, domain) { value.to_owned() } else { format!("{ours}{rest}") };
        if !expanded.contains(&meant) {
            expanded.push(meant);
        }
    }
    expanded
}

fn has_suffix(domain: &str, pattern: &str) -> bool {
    pattern.strip_prefix('*').is_some_and(|suffix| domain.ends_with(suffix))
}

fn has_prefix(domain: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').is_some_and(|prefix| domain.starts_with(prefix))
}
