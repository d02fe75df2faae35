//! The all-readings rule (`spec/authorization.md` 2.12): where nobody has said how an application reads paths, no request
//! is allowed that would be denied under a reading of its path.
//!
//! The readings are computed here by following the rule's words, apart from the engine's code and the reference's, and
//! each is then judged as a path that is read as it stands.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, AuthorizationPolicySpec, Operation, Rule, To},
};
use ambit_policy::{
    Compiled, ConnectionFacts, Decision, Options, PathNormalization, RequestFacts, compile, limits::MAX_TARGET_BYTES,
};
use proptest::{collection::vec, prelude::*, sample::select};

/// Segments as policies write them and as attackers do.
const SEGMENTS: &[&str] = &[
    "a",
    "b",
    "admin",
    "admin",
    "public",
    "public",
    "",
    "",
    ".",
    "..",
    "..",
    "%2e",
    "%2E%2e",
    ".%2e",
    "a;x",
    ";",
    "..;",
    "..;x=1",
    ".;",
    "admin;",
    "admin;/",
    "%2F",
    "a%2Fb",
    "%2f..",
    "..%2F",
    "..%2f..",
    "%5C..",
    "..%5c",
    "a\\..",
    "\\",
    "%61dmin",
    "Admin",
    "admin%3B",
    "admin%3Fx",
    "%252F",
    "%25",
    "%",
    "%4",
    "%31",
    "caf\u{e9}",
    "%FF",
    "%C0%AE%C0%AE",
    "{",
    "~",
    "*",
];
const SEPARATORS: &[&str] = &["/", "/", "/", "/", "//", "\\", "%2F", "%5C", "%2f", "/./", ";/"];
const ENDS: &[&str] = &["", "", "", "/", "?q", "?/../admin", ";p", "/..", "/."];
const PATTERNS: &[&str] = &[
    "*",
    "/*",
    "/public/*",
    "/public",
    "/a/*",
    "/a",
    "/a/b",
    "/admin",
    "/admin/*",
    "*admin",
    "/a/{*}",
    "/public/{**}",
    "/{**}/admin",
    "/a%2Fb",
    "//*",
    "/admin;*",
    "/",
];

fn policy(action: Action, paths: &[&str], not_paths: &[&str]) -> AuthorizationPolicy {
    let owned = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    let operation = Operation {
        methods: vec!["GET".to_owned()],
        paths: owned(paths),
        not_paths: owned(not_paths),
        ..Operation::default()
    };
    let rules = Some(vec![Rule { to: Some(vec![To { operation }]), ..Rule::default() }]);
    AuthorizationPolicy {
        namespace: "default".to_owned(),
        name: format!("{action:?}").to_lowercase(),
        annotations: Default::default(),
        spec: AuthorizationPolicySpec { action, rules, ..AuthorizationPolicySpec::default() },
    }
}

fn compiled(policies: &[AuthorizationPolicy]) -> Compiled {
    compile(policies, &Options::default()).expect("the policies compile")
}

/// The decision, with its whole reason if it is a denial.
fn decide(compiled: &Compiled, paths: PathNormalization, target: &str) -> Decision {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let connection = ConnectionFacts::new(address, address, 80);
    let residual = compiled.clone().with_path_normalization(paths).for_connection(&connection);
    let request = RequestFacts::new("GET", target, "web");
    let decision = residual.decide(&request);
    if decision.is_allowed() { decision } else { residual.with_reason(decision, Some(&request)) }
}

fn is_allowed(compiled: &Compiled, paths: PathNormalization, target: &str) -> bool {
    decide(compiled, paths, target).is_allowed()
}

/// What servers may make of a target that starts with `/`. All cut its query and write it plainly. Some then decode escaped
/// slashes, strip parameters or merge slashes, before or after they resolve dot segments; they may do so on what a proxy in
/// front of them has resolved before. Envoy is such a proxy, and takes `..;x` for `..`.
fn readings(target: &str) -> BTreeSet<String> {
    let sent = target.split('?').next().unwrap_or_default();
    let plain = written_plainly(sent);
    let base = dots_resolved(&plain);
    let envoy = dots_resolved(&written_plainly(&dots_without_parameters(sent)));
    let other = |path: &String| {
        let (decoded, stripped) = (slashes_decoded(path), parameters_stripped(path));
        let (both, as_well) = (slashes_decoded(&stripped), parameters_stripped(&decoded));
        [path.clone(), decoded, stripped, both, as_well]
    };
    let resolved = |path: String| {
        let path_resolved = dots_resolved(&path);
        [slashes_merged(&path_resolved), path_resolved, dots_resolved(&slashes_merged(&path))]
    };
    [plain, base, envoy].iter().flat_map(other).flat_map(resolved).collect()
}

fn dots_without_parameters(path: &str) -> String {
    let segment = |segment: &str| match segment.find(';') {
        Some(at @ 1..=2) if segment[..at].bytes().all(|byte| byte == b'.') => segment[..at].to_owned(),
        _ => segment.to_owned(),
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

fn written_plainly(path: &str) -> String {
    const ALWAYS_ESCAPED: &str = "\"<>^`{|}";
    let hex = |digits: Option<&[u8]>| {
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let bytes = path.as_bytes();
    let (mut plain, mut at) = (String::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match (byte, hex(bytes.get(at..at + 2))) {
            (b'%', Some(meant)) if meant.is_ascii_alphanumeric() || b"-._~".contains(&meant) => {
                plain.push(char::from(meant));
                at += 2;
            }
            (b'%', Some(_)) => plain.push('%'),
            (b'\\', _) => plain.push('/'),
            // What is decoded after it must not make an escape of it.
            (b'%', None) => {
                // Two characters, each an escape at most.
                let soon: String = path[at..].chars().take(6).collect();
                let after: Vec<u8> = if soon.starts_with('%') && hex(soon.as_bytes().get(1..3)).is_none() {
                    Vec::new()
                } else {
                    written_plainly(&soon).bytes().take(2).collect()
                };
                plain += if after.len() == 2 && after.iter().all(u8::is_ascii_hexdigit) { "%25" } else { "%" };
            }
            _ if !byte.is_ascii_graphic() || ALWAYS_ESCAPED.contains(char::from(byte)) => {
                plain += &format!("%{byte:02X}");
            }
            _ => plain.push(char::from(byte)),
        }
    }
    plain
}

fn slashes_decoded(path: &str) -> String {
    path.replace("%2F", "/").replace("%2f", "/").replace("%5C", "/").replace("%5c", "/")
}

fn slashes_merged(path: &str) -> String {
    let once = path.replace("//", "/");
    if once == path { once } else { slashes_merged(&once) }
}

fn parameters_stripped(path: &str) -> String {
    let bare = |segment: &str| segment.split_once(';').map_or(segment, |(bare, _)| bare).to_owned();
    path.split('/').map(bare).collect::<Vec<_>>().join("/")
}

fn dots_resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (index, &segment) in segments.iter().enumerate() {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
        if index + 1 == segments.len() && matches!(segment, "." | "..") {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    (vec((select(SEPARATORS), select(SEGMENTS)), 0..6), select(ENDS)).prop_map(|(parts, end)| {
        let path: String = parts.into_iter().flat_map(|(separator, segment)| [separator, segment]).collect();
        format!("/{}{end}", path.strip_prefix('/').unwrap_or(&path))
    })
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let patterns = || vec(select(PATTERNS), 0..3);
    let action = select(vec![Action::Allow, Action::Deny, Action::Deny]);
    let one =
        (action, patterns(), patterns()).prop_map(|(action, paths, not_paths)| policy(action, &paths, &not_paths));
    // Without an ALLOW that lets most through, nearly all would be denied by default and the property would say little.
    (vec(one, 1..4), any::<bool>()).prop_map(|(mut policies, open)| {
        if open {
            policies.push(policy(Action::Allow, &[], &["/a/b"]));
        }
        policies
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_allowed_that_is_denied_under_a_reading(policies in policies(), targets in vec(target(), 4)) {
        let compiled = compiled(&policies);
        for target in &targets {
            let allowed = is_allowed(&compiled, PathNormalization::AllReadings, target);
            let denying = readings(target).into_iter().find(|path| !is_allowed(&compiled, PathNormalization::None, path));
            prop_assert!(!(allowed && denying.is_some()), "{target} is allowed, and denied if read as {denying:?}");
            for mode in
                [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes]
            {
                prop_assert!(!allowed || is_allowed(&compiled, mode, target), "{target} is allowed, and denied with {mode:?}");
            }
        }
    }

    /// The rule takes nothing from paths that everybody reads alike.
    #[test]
    fn a_path_with_one_reading_is_judged_as_it_stands(
        policies in policies(),
        segments in vec(select(vec!["a", "b", "admin", "public", "x.y", "...", "a:b", "~u", "v1,2"]), 0..5),
    ) {
        let (compiled, path) = (compiled(&policies), format!("/{}", segments.join("/")));
        prop_assert_eq!(readings(&path), BTreeSet::from([path.clone()]));
        prop_assert_eq!(
            decide(&compiled, PathNormalization::AllReadings, &path),
            decide(&compiled, PathNormalization::None, &path)
        );
    }
}

/// Everything is allowed but `/admin` and what is below it.
fn all_but_admin() -> Compiled {
    compiled(&[policy(Action::Allow, &["*"], &[]), policy(Action::Deny, &["/admin", "/admin/*"], &[])])
}

#[test]
fn ways_around_a_denied_path_are_denied() {
    let compiled = all_but_admin();
    for target in [
        "/admin",
        "/admin/x",
        "//admin",
        "//admin/x",
        "/public//../admin",
        "/public/..//admin",
        "/./admin",
        "/admin/.",
        "/admin/./x",
        "/public/../admin",
        "/public/../../admin/x",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/%2Fadmin",
        "/admin%2Fx",
        "/admin%2fx",
        "/public%2F..%2Fadmin",
        "/public/..%2Fadmin",
        // Dot segments resolved by a proxy, and what is left decoded and resolved by the application.
        "/public/x%2Fy/../..%2Fadmin",
        "/public/x;/y/../..;/..;/admin",
        "/%5Cadmin",
        "/admin%5Cx",
        "/public/..%5c..%5Cadmin",
        "/\\admin",
        "/admin\\x",
        "/public\\..\\admin",
        "/admin;",
        "/admin;x=1",
        "/admin;x=1/y",
        "/public/..;/admin",
        "/public/..;x=1/admin",
        "/;/admin",
        "/admin;%2Fx",
        "/%61dmin",
        "/%61%64%6D%69%6E",
        "/admin?x",
        "/admin?/../public",
        "/admin/?",
        "http://web/admin",
        "http://web//admin",
    ] {
        assert!(!is_allowed(&compiled, PathNormalization::AllReadings, target), "{target}");
    }
}

#[test]
fn a_denial_by_another_reading_names_it() {
    let compiled = all_but_admin();
    for (target, reading) in [
        ("//admin", "slashes merged"),
        ("/public/..%2Fadmin", "escaped slashes decoded"),
        ("/admin%5Cx", "escaped slashes decoded"),
        ("/admin;x=1", "path parameters stripped"),
        ("/public/%2e%2e;/admin", "path parameters stripped"),
    ] {
        let decision = decide(&compiled, PathNormalization::AllReadings, target);
        assert!(!decision.is_allowed(), "{target}");
        let reason = decision.reason.to_string();
        assert!(reason.contains(reading) && reason.contains("`/admin"), "{target}: {reason}");
        assert_eq!(decision.policy.map(|policy| policy.to_string()).as_deref(), Some("default/deny"), "{target}");
        assert!(is_allowed(&compiled, PathNormalization::None, target), "{target}: only another reading denies");
    }
}

#[test]
fn what_no_reading_denies_is_allowed() {
    let compiled = all_but_admin();
    for target in [
        "/",
        "/public",
        "/public//x",
        "/public/./x/../y",
        "/public%2Fx",
        "/public%5Cx",
        "/public;x=1/y",
        "/public\\x",
        "/public?/../admin",
        "/public?x=/admin#",
        "/administrator",
        // Paths are compared with their case, as Envoy does.
        "/ADMIN",
        "/Admin/x",
        // Once decoded they are other characters than `/`, `.` or `;`.
        "/public/%252e%252e/admin",
        "/admin%252Fx",
        "/admin%3Bx",
        "/admin%3Fx",
        "/admin%20",
        "/caf\u{e9}",
        "/%FF",
        "/%C0%AE%C0%AE/admin",
    ] {
        let decision = decide(&compiled, PathNormalization::AllReadings, target);
        assert_eq!(decision.is_allowed(), !target.contains('#'), "{target}: {}", decision.reason);
    }
}

#[test]
fn an_allowed_path_is_allowed_in_no_other_spelling() {
    let compiled = compiled(&[policy(Action::Allow, &["/v1/traces"], &[])]);
    for target in ["/v1/traces", "/v1/traces?x=1", "/v1/./traces", "/v1/x/../traces", "/v1/%74races", "/v1\\traces"] {
        assert!(is_allowed(&compiled, PathNormalization::AllReadings, target), "{target} is the same path everywhere");
    }
    for target in [
        "/V1/traces",
        "/v1/Traces",
        "//v1/traces",
        "/v1//traces",
        "/v1/traces/",
        "/v1/traces/.",
        "/v1/traces/..",
        "/v1%2Ftraces",
        "/v1%2ftraces",
        "/v1%5Ctraces",
        "/v1/traces;",
        "/v1;x/traces",
        "/v1/traces#",
        "/v1/traces#x",
        "/v1/traces%3Fx",
        "/v1/traces%00",
        "/v1/traces\0",
        "/v1/traces ",
        "/v1/traces%20",
        "/v1/traces\u{e9}",
        "/v1/traces%FF",
        "",
        "*",
        "?",
        "v1/traces",
        "\\v1/traces",
        " /v1/traces",
    ] {
        assert!(!is_allowed(&compiled, PathNormalization::AllReadings, target), "{target}");
    }
}

#[test]
fn a_negated_path_is_held_under_every_reading() {
    let compiled = compiled(&[policy(Action::Allow, &[], &["/admin*"])]);
    assert!(is_allowed(&compiled, PathNormalization::AllReadings, "/public//x"));
    for target in ["/admin", "//admin", "/%2Fadmin", "/public/..;/admin", "/public/..%5Cadmin"] {
        assert!(!is_allowed(&compiled, PathNormalization::AllReadings, target), "{target}");
    }
    let denied_elsewhere =
        self::compiled(&[policy(Action::Allow, &["*"], &[]), policy(Action::Deny, &[], &["/public", "/public/*"])]);
    assert!(is_allowed(&denied_elsewhere, PathNormalization::AllReadings, "/public//x"));
    for target in ["/x", "/public/..%2Fx", "/public/..;/x", "//x", "//public"] {
        assert!(!is_allowed(&denied_elsewhere, PathNormalization::AllReadings, target), "{target}");
    }
}

#[test]
fn an_explicit_mode_switches_the_rule_off() {
    let compiled = all_but_admin();
    for (target, mode) in [
        ("//admin", PathNormalization::Base),
        ("/%2Fadmin", PathNormalization::Base),
        ("/%2Fadmin", PathNormalization::MergeSlashes),
        ("/admin;x", PathNormalization::DecodeAndMergeSlashes),
        ("/public/../admin", PathNormalization::None),
    ] {
        assert!(is_allowed(&compiled, mode, target), "{target} with {mode:?}");
    }
}

#[test]
fn the_longest_targets_are_judged_and_longer_ones_denied() {
    let compiled = all_but_admin();
    let filled = |piece: &str, end: &str| {
        let count = (MAX_TARGET_BYTES - 1 - end.len()) / piece.len();
        let target = format!("/{}{end}", piece.repeat(count));
        format!("{target}{}", "x".repeat(MAX_TARGET_BYTES - target.len()))
    };
    // What looks like the most work: every segment changes under every reading.
    for piece in ["a", "a/", "/", "../", "..%2f", "%5C", "a;x/", "..;/", "%2e%2e/", "\u{e9}", "%", "\\"] {
        let started = Instant::now();
        let target = filled(piece, "");
        assert_eq!(target.len(), MAX_TARGET_BYTES);
        assert!(is_allowed(&compiled, PathNormalization::AllReadings, &target), "{piece}");
        assert!(!is_allowed(&compiled, PathNormalization::AllReadings, &format!("{target}x")), "{piece}, one too long");
        assert!(!is_allowed(&compiled, PathNormalization::Base, &format!("{target}x")), "{piece}, one too long");
        assert!(started.elapsed() < Duration::from_secs(5), "{piece}: {:?}", started.elapsed());
    }
    let roundabout = filled("a/../", "admin/");
    assert!(!is_allowed(&compiled, PathNormalization::AllReadings, &roundabout));
}
