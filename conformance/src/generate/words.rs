//! What values are made of.

/// Trust domains of a mesh: its own, then its aliases.
pub const MESHES: &[&[&str]] = &[
    &["cluster.local"],
    &["cluster.local"],
    &["cluster.local", "old.td"],
    &["td1", "cluster.local"],
    &["td1", "td2", "new-td"],
    &["prod.example.com", "stage.example.com"],
];
pub const OTHER_TRUST_DOMAINS: &[&str] = &["cluster.local", "other.td", "td1", "new-td", "td", "example.com"];
pub const NAMESPACES: &[&str] = &["default", "team-a", "team-b", "team", "istio-system", "a", "ns"];
pub const ACCOUNTS: &[&str] = &["web", "api", "client", "default", "web-1", "sa"];
pub const PORTS: &[u16] = &[80, 443, 8080, 8081, 9090, 15008, 65535, 1];
pub const METHODS: &[&str] = &["GET", "GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
pub const HOSTS: &[&str] = &[
    "web.default.svc.cluster.local",
    "web",
    "web:8080",
    "Web.Example.com",
    "api.example.com",
    "api.example.com:8080",
    "example.com",
];
pub const PATHS: &[&str] = &[
    "/",
    "/api",
    "/api/",
    "/api/v1/items",
    "/api/v1/items/42",
    "/api/v1/items/42/edit",
    "/admin",
    "/admin/users",
    "/files/a/b/c.txt",
    "/static/app.js",
    "/A-b_c~d.e/f",
    "/x/y=1,2;3/z",
    "/a%2Fb/c",
];
pub const HEADERS: &[&str] = &["x-team", "X-Role", "x-env", "user-agent", "cookie", "accept", "authorization"];
pub const HEADER_VALUES: &[&str] =
    &["alpha", "alpha-1", "beta", "Beta", "a", "a,b", "", "x=1; y=2", "curl/8.0", "Basic eDp5"];
pub const ISSUERS: &[&str] = &["https://issuer.example", "https://issuer.example/realms/a", "issuer", "issuer-2"];
pub const SUBJECTS: &[&str] = &["alice", "bob", "svc", "alice-2", "team/alice"];
pub const AUDIENCES: &[&str] = &["web", "api", "api-2", "https://web.example"];
pub const GROUPS: &[&str] = &["admin", "dev", "dev-1", "ops", "read write", "Admin"];
/// Names in `request.auth.claims[...]`, nested ones in parts.
pub const CLAIMS: &[&[&str]] =
    &[&["groups"], &["role"], &["scope"], &["realm", "roles"], &["realm", "name"], &["a.b"], &["iss"], &["level"]];
