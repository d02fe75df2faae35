//! Trust-domain aliases in principals (`spec/authorization.md` 2.6).

/// The trust domain that always means the mesh's own.
const LOCAL_TRUST_DOMAIN: &str = "cluster.local";

/// `td`, `ns`, the namespace, `sa`, the account.
const FULL_PRINCIPAL_PARTS: usize = 5;

/// The values that one value of `principals` stands for.
///
/// A full principal (`td/ns/x/sa/y`) of the mesh's trust domain, of an alias, or of `cluster.local` stands for that
/// workload in each of the mesh's trust domains. A trust domain with a `*` at an end is one of the mesh's if it matches
/// one; `*suffix` stays as it is for those that it matches. Every other value stands for itself.
pub(crate) fn expand_aliases(value: &str, trust_domains: &[String]) -> Vec<String> {
    let as_written = || vec![value.to_owned()];
    let Some((domain, _)) = value.split_once('/') else { return as_written() };
    let is_full = value.split('/').count() == FULL_PRINCIPAL_PARTS;
    let is_ours = domain == LOCAL_TRUST_DOMAIN
        || trust_domains.iter().any(|known| known == domain || has_suffix(known, domain) || has_prefix(known, domain));
    if !is_full || !is_ours || trust_domains.is_empty() {
        return as_written();
    }
    let rest = &value[domain.len()..];
    let mut expanded = Vec::new();
    for known in trust_domains {
        let meant = if has_suffix(known, domain) { value.to_owned() } else { format!("{known}{rest}") };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_principals_are_one_per_trust_domain_and_others_stay() {
        let known = ["td1".to_owned(), "old".to_owned()];
        let both = ["td1/ns/a/sa/b", "old/ns/a/sa/b"];
        for value in ["td1/ns/a/sa/b", "old/ns/a/sa/b", "cluster.local/ns/a/sa/b"] {
            assert_eq!(expand_aliases(value, &known), both, "{value}");
        }
        for (value, meant) in [
            ("*d1/ns/a/sa/b", ["*d1/ns/a/sa/b", "old/ns/a/sa/b"]),
            ("*ld/ns/a/sa/b", ["td1/ns/a/sa/b", "*ld/ns/a/sa/b"]),
            ("o*/ns/a/sa/b", both),
        ] {
            assert_eq!(expand_aliases(value, &known), meant, "{value}");
        }
        for value in
            ["*", "other/ns/a/sa/b", "td1/ns/a/*", "*/ns/a/sa/b", "*-td/ns/a/sa/b", "*/sa/b", "a/b/c/d/e", "td1/ns/a"]
        {
            assert_eq!(expand_aliases(value, &known), [value], "{value}");
        }
        assert_eq!(expand_aliases("cluster.local/ns/a/sa/b", &[]), ["cluster.local/ns/a/sa/b"]);
    }
}
