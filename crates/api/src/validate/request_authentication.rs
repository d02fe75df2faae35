//! RequestAuthentication: Istio's own validation (`spec/control-plane.md` 3.1), and what could never work.

use super::{
    Check,
    policy::{self, Attached},
};
use crate::{
    RequestAuthentication, codes,
    jwks::{KeySet, KeySetError},
    request_authentication::JwtRule,
    text::quoted,
};

/// Most rules in one object.
const MAX_RULES: usize = 4096;
/// Most headers, parameters, cookies, audiences or claims that one rule lists.
const MAX_ENTRIES: usize = 64;
/// Longest address of keys, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// Headers that frame or address a request, or that only a proxy sets: no claim may be put there.
const RESERVED_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "ambit-source",
    "x-forwarded-client-cert",
];

/// Checks a whole RequestAuthentication.
pub(super) fn check(check: &mut Check<'_>, object: &RequestAuthentication) {
    let spec = &object.spec;
    policy::check_attached(
        check,
        &object.namespace,
        &Attached {
            selector: spec.selector.as_ref(),
            target_ref: spec.target_ref.as_ref(),
            target_refs: &spec.target_refs,
        },
    );
    at_most(check, "spec.jwtRules", spec.jwt_rules.len(), MAX_RULES);
    for (index, rule) in spec.jwt_rules.iter().enumerate().take(MAX_RULES) {
        check_rule(check, &format!("spec.jwtRules[{index}]"), rule);
    }
}

fn check_rule(check: &mut Check<'_>, field: &str, rule: &JwtRule) {
    let at = |name: &str| format!("{field}.{name}");
    for (name, length) in [
        ("audiences", rule.audiences.len()),
        ("fromHeaders", rule.from_headers.len()),
        ("fromParams", rule.from_params.len()),
        ("fromCookies", rule.from_cookies.len()),
        ("outputClaimToHeaders", rule.output_claim_to_headers.len()),
        ("spaceDelimitedClaims", rule.space_delimited_claims.len()),
    ] {
        at_most(check, &at(name), length, MAX_ENTRIES);
    }
    check_keys(check, field, rule);
    for (name, help, list) in [
        ("audiences", "write an audience, or remove the entry", &rule.audiences),
        ("fromParams", "write the parameter's name", &rule.from_params),
        ("fromCookies", "write the cookie's name", &rule.from_cookies),
        ("spaceDelimitedClaims", "write the claim's name", &rule.space_delimited_claims),
    ] {
        for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            check.error(codes::EMPTY_VALUE, &format!("{field}.{name}[{index}]"), "an empty value", help);
        }
    }
    for (index, header) in rule.from_headers.iter().enumerate() {
        check_header(check, &format!("{field}.fromHeaders[{index}].name"), &header.name);
    }
    if !rule.output_payload_to_header.is_empty() {
        check_output(check, &at("outputPayloadToHeader"), &rule.output_payload_to_header);
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let field = format!("{field}.outputClaimToHeaders[{index}]");
        check_output(check, &format!("{field}.header"), &output.header);
        if output.claim.is_empty() || output.claim.split('.').any(str::is_empty) {
            let message = format!("`{}` is not a claim's name", quoted(&output.claim));
            let help = "write the claim's name; `a.b` is `b` inside of `a`";
            check.error(codes::BAD_JWT_RULE, &format!("{field}.claim"), message, help);
        }
    }
    if rule.timeout().is_none() {
        let written = quoted(rule.timeout.as_deref().unwrap_or_default());
        check.error(
            codes::BAD_JWT_RULE,
            &at("timeout"),
            format!("`{written}` is not a duration"),
            "write it like `500ms` or `5s`",
        );
    }
}

/// Where the keys come from: one place, and one that can be asked.
fn check_keys(check: &mut Check<'_>, field: &str, rule: &JwtRule) {
    let at = |name: &str| format!("{field}.{name}");
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        let message = "a rule needs an `issuer` or a `jwksUri`";
        check.error(codes::BAD_JWT_RULE, field, message, "name the issuer, as it stands in `iss` of its tokens");
    }
    if !rule.jwks_uri.is_empty() {
        check_url(check, &at("jwksUri"), &rule.jwks_uri);
        if !rule.jwks.is_empty() {
            let message = "`jwks` and `jwksUri` are both set";
            check.error(codes::BAD_JWT_RULE, &at("jwksUri"), message, "keep one of the two");
        }
    } else if rule.jwks.is_empty() && !rule.issuer.is_empty() && url_fault(&rule.issuer).is_some() {
        let message = format!(
            "the keys of `{}` can't be found: it isn't an address, so it has no OpenID configuration",
            quoted(&rule.issuer)
        );
        check.error(codes::BAD_JWT_RULE, &at("issuer"), message, "add `jwksUri` or `jwks`");
    }
    if rule.jwks.is_empty() {
        return;
    }
    match KeySet::parse(rule.jwks.as_bytes()) {
        Err(error) => {
            let help = match error {
                KeySetError::Malformed(_) => "write `{\"keys\": [...]}`, as the issuer publishes it",
                _ => "write the issuer's public keys",
            };
            check.error(codes::BAD_JWKS, &at("jwks"), format!("the key set can't be used: {error}"), help);
        }
        Ok(set) => {
            if set.holds_private_key {
                let message = "the key set holds a secret: a private or symmetric key";
                let help = "remove it and let the issuer make a new key; only public keys belong here";
                check.warning(codes::PRIVATE_KEY, &at("jwks"), message, help);
            }
            if set.unusable > 0 {
                let message = format!("{} keys of the set can't verify signatures here", set.unusable);
                let help = "keys are RSA of 2048 bits and more, EC on P-256, P-384 or P-521, or Ed25519";
                check.warning(codes::BAD_JWKS, &at("jwks"), message, help);
            }
        }
    }
}

fn check_url(check: &mut Check<'_>, field: &str, url: &str) {
    if let Some(fault) = url_fault(url) {
        let message = format!("`{}` can't be fetched: {fault}", quoted(url));
        let help = "write an address like `https://issuer.example.com/jwks.json`";
        check.error(codes::BAD_JWT_RULE, field, message, help);
    }
}

/// Why this isn't an address that keys can be fetched from.
fn url_fault(url: &str) -> Option<&'static str> {
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return Some("it doesn't start with `https://` or `http://`");
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if url.len() > MAX_URL_BYTES {
        Some("it is too long")
    } else if host.is_empty() {
        Some("it names no host")
    } else if authority.contains('@') {
        Some("it holds a user name")
    } else if url.contains('#') || url.bytes().any(|byte| !byte.is_ascii_graphic()) {
        Some("it holds characters that an address can't have")
    } else {
        None
    }
}

fn check_header(check: &mut Check<'_>, field: &str, name: &str) {
    if name.is_empty() || !name.bytes().all(policy::is_token) {
        let message = format!("`{}` is not a header's name", quoted(name));
        check.error(codes::BAD_JWT_RULE, field, message, "write a name like `x-jwt-assertion`");
    }
}

fn check_output(check: &mut Check<'_>, field: &str, name: &str) {
    check_header(check, field, name);
    if RESERVED_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        let message = format!("a token can't set the header `{}`", quoted(name));
        check.error(codes::BAD_JWT_RULE, field, message, "use another header, for example `x-jwt-payload`");
    }
}

fn at_most(check: &mut Check<'_>, field: &str, found: usize, most: usize) {
    if found > most {
        let message = format!("{found} entries are more than the {most} allowed");
        check.error(codes::TOO_MANY, field, message, "write fewer");
    }
}
