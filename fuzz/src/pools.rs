//! Values that collide.

use ambit_policy::PathNormalization;

pub(crate) const MODES: &[PathNormalization] = &[
    PathNormalization::AllReadings,
    PathNormalization::AllReadings,
    PathNormalization::AllReadings,
    PathNormalization::None,
    PathNormalization::Base,
    PathNormalization::MergeSlashes,
    PathNormalization::DecodeAndMergeSlashes,
];

/// Modes with one reading that is among all readings.
pub(crate) const FIXED_READINGS: &[PathNormalization] =
    &[PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes];

/// Trust domains of a mesh.
pub(crate) const MESHES: &[&[&str]] = &[&["td", "old"], &["td", "old"], &["cluster.local"], &[]];

pub(crate) const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a*",
    "*b",
    "*",
    "/admin",
    "/admin/*",
    "/{*}",
    "/a/{*}",
    "/a/{**}",
    "/{**}/b",
    "/a/{*}/b",
    "//a",
    "/a%2Fb",
    "/a;x",
    "/{*}/{**}",
    "/{**}",
];
pub(crate) const PATHS_SENT: &[&str] = &["/", "/a", "/a/", "/a/b", "/admin", "/admin/x", "/a/b/b", "*", ""];
pub(crate) const PIECES: &[&str] = &[
    "/", "/", "/", "a", "b", "admin", "..", ".", "%2e", "%2E", "%2F", "%2f", "%5C", "%5c", "\\", ";", ";x", "%3B",
    "%3b", "%41", "%25", "%252F", "%", "%2", "é", "%FF", "{", "|", "*", "[", "?q", "#", "%00", "~", " ", "%61", "A",
];
pub(crate) const METHODS: &[&str] = &["GET", "POST", "P*", "*T", "*", "get"];
pub(crate) const METHODS_SENT: &[&str] = &["GET", "POST", "PUT", "get", ""];
pub(crate) const HOSTS: &[&str] = &["web", "WEB", "web:80", "*.example.com", "web*", "*", "*:80"];
pub(crate) const AUTHORITIES: &[&str] = &["web", "WEB:80", "x.Example.com", "", "other"];
pub(crate) const PORTS: &[&str] = &["80", "443", "080", "0", "65535"];
pub(crate) const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/a/sa/x",
    "td/ns/a/sa/x",
    "old/ns/b/sa/y",
    "other/ns/a/sa/x",
    "*",
    "*/sa/x",
    "td/ns/a/*",
    "cluster.local/*",
    "*/ns/a/sa/x",
    "td/ns/a/sa/*",
];
pub(crate) const PEERS: &[&str] = &[
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://td/ns/a/sa/x",
    "spiffe://old/ns/b/sa/y",
    "spiffe://other/ns/a/sa/x",
    "spiffe://td/ns/ab/sa/y",
    "spiffe://other/ns/b/sa/z",
    "spiffe://td/a/b",
    "spiffe://td/ns/a/sa/x/extra",
    "spiffe://",
];
pub(crate) const SERVER_NAMES: &[&str] = &["web", "web.example.com", "WEB", "other", ""];
pub(crate) const HEADER_NAMES: &[&str] =
    &["x-team", "X-Team", "cookie", "user-agent", "authorization", "x-request-id", "host", "x-envoy-internal"];
pub(crate) const HEADER_VALUES: &[&str] = &["one", "two", "one,two", "one, two", "o", "", "a=1; b=2"];
pub(crate) const CLAIM_NAMES: &[&str] =
    &["iss", "sub", "aud", "azp", "scope", "permission", "groups", "realm", "roles", "a.b"];
pub(crate) const CLAIM_VALUES: &[&str] = &["alice", "bob", "iss", "iss/sub", "read", "admin", "web", ""];
pub(crate) const NAMESPACES: &[&str] = &["a", "b", "a*", "*b", "*", "*a*b*"];
pub(crate) const ACCOUNTS: &[&str] = &["x", "y", "a/x", "b/y"];
pub(crate) const TRUST_DOMAINS: &[&str] = &["td", "old", "cluster.local", "oth*", "*d", "*"];
pub(crate) const BLOCKS: &[&str] = &[
    "10.1.0.0/16",
    "10.1.2.3",
    "0.0.0.0/0",
    "::/0",
    "fd00::/8",
    "::ffff:10.1.0.0/112",
    "::ffff:0:0/96",
    "::/80",
    "10.1.2.3/8",
];
pub(crate) const ADDRESSES: &[&str] = &["10.1.2.3", "10.2.0.1", "::ffff:10.1.2.3", "fd00::1", "::1"];
pub(crate) const REQUEST_PRINCIPALS: &[&str] = &["iss/alice", "iss/*", "*/alice", "*alice", "*", "iss/sub/bob", "*bob"];
const CLAIMS: &[&str] = &["alice", "bob", "read", "admin", "a*", "*e", "*", "iss", "web"];
const HEADERS: &[&str] = &["one", "two", "one,two", "o*", "*o", "*", ""];
const NAMES: &[&str] = &["web", "web.example.com", "*.example.com", "*", "w*", "WEB"];

/// Keys of `when` with values for them.
pub(crate) const CONDITIONS: &[(&str, &[&str])] = &[
    ("source.ip", BLOCKS),
    ("remote.ip", BLOCKS),
    ("source.namespace", NAMESPACES),
    ("source.principal", PRINCIPALS),
    ("source.serviceAccount", ACCOUNTS),
    ("source.trustDomain", TRUST_DOMAINS),
    ("destination.ip", BLOCKS),
    ("destination.port", PORTS),
    ("connection.sni", NAMES),
    ("request.headers[x-team]", HEADERS),
    ("request.headers[X-Team]", HEADERS),
    ("request.headers[cookie]", HEADERS),
    ("request.headers[user-agent]", HEADERS),
    ("request.headers[host]", HOSTS),
    ("request.headers[:method]", METHODS),
    ("request.auth.principal", REQUEST_PRINCIPALS),
    ("request.auth.audiences", CLAIMS),
    ("request.auth.presenter", CLAIMS),
    ("request.auth.claims[iss]", CLAIMS),
    ("request.auth.claims[scope]", CLAIMS),
    ("request.auth.claims[groups]", CLAIMS),
    ("request.auth.claims[realm][roles]", CLAIMS),
    ("request.auth.claims[a.b]", CLAIMS),
];
