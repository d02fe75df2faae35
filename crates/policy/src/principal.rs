//! Trust-domain aliases in principals (`spec/authorization.md` 2.6).

/// The trust domain that always means the mesh's own.
const LOCAL_TRUST_DOMAIN: &str = "cluster.local";

/// `td`, `ns`, the namespace, `sa`, the account.
const FULL_PRINCIPAL_PARTS: usize = 5;

/// The values that one value of `principals` stands for.
///
/// A full principal (`td/ns/x/sa/y`) of the mesh's trust domain, of an alias, or of `cluster.local` stands for that
/// workload in each of the mesh's trust domains. Every other value stands for itself.
pub(crate) fn expand_aliases(value: &str, trust_domains: &[String]) -> Vec<String> {
    let Some((trust_domain, _)) = value.split_once('/') else { return vec![value.to_owned()] };
    let is_full = value.split('/').count() == FULL_PRINCIPAL_PARTS;
    let is_ours = trust_domain == LOCAL_TRUST_DOMAIN || trust_domains.iter().any(|known| known == trust_domain);
    if !is_full || !is_ours || trust_domains.is_empty() {
        return vec![value.to_owned()];
    }
    let rest = &value[trust_domain.len()..];
    trust_domains.iter().map(|known| format!("{known}{rest}")).collect()
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
        for value in
            ["*", "other/ns/a/sa/b", "td1/ns/a/*", "*/ns/a/sa/b", "*-td/ns/a/sa/b", "*/sa/b", "a/b/c/d/e", "td1/ns/a"]
        {
            assert_eq!(expand_aliases(value, &known), [value], "{value}");
        }
    }
}
