//! Every diagnostic code of this crate: stable, never reused. AMB01xx reading files, AMB02xx any object, AMB03xx
//! AuthorizationPolicy, PeerAuthentication and RequestAuthentication, AMB04xx Gateway, AMB05xx Service, Pod and
//! Deployment, AMB06xx MeshConfig, AMB07xx routes, AMB08xx DestinationRule, AMB09xx TrafficPolicy and
//! XBackendTrafficPolicy.
//! AMB1xxx and up belong to other crates.

/// A diagnostic's stable code, for example `AMB0101`.
pub type Code = &'static str;

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $code:literal;)*) => {
        $($(#[$doc])+ pub const $name: Code = $code;)*

        /// All of them, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    /// A path can't be read.
    UNREADABLE_FILE = "AMB0101";
    /// A file, its documents or its nesting exceed a limit of [`crate::limits`].
    TOO_LARGE = "AMB0102";
    /// The file isn't UTF-8.
    NOT_UTF8 = "AMB0103";
    /// The file isn't well-formed YAML.
    BAD_YAML = "AMB0104";
    /// A mapping has one key twice.
    DUPLICATE_KEY = "AMB0105";
    /// A YAML feature that manifests have no use for: a tag, a key that isn't text.
    UNSUPPORTED_YAML = "AMB0106";
    /// A folder without a YAML file in it.
    NO_FILES = "AMB0107";

    /// A document without the `apiVersion`, `kind` or `metadata.name` that makes it an object.
    NOT_AN_OBJECT = "AMB0201";
    /// A kind that the mesh has no use for was ignored.
    IGNORED_KIND = "AMB0202";
    /// A kind that is spelled like a known one but isn't.
    MISSPELLED_KIND = "AMB0203";
    /// A known kind in a version that isn't supported.
    UNSUPPORTED_VERSION = "AMB0204";
    /// A field's value has the wrong type, or a required field is missing.
    WRONG_TYPE = "AMB0205";
    /// A field that its kind doesn't have.
    UNKNOWN_FIELD = "AMB0206";
    /// Two objects of one kind with the same name and namespace.
    DUPLICATE_OBJECT = "AMB0207";
    /// A name that Kubernetes would refuse.
    BAD_NAME = "AMB0208";
    /// A label that Kubernetes would refuse.
    BAD_LABEL = "AMB0209";
    /// A label of the mesh with a value that means nothing, or on a kind where it means nothing.
    BAD_MESH_LABEL = "AMB0210";

    /// More than one of `selector`, `targetRef` and `targetRefs` (row 1).
    SELECTOR_AND_TARGET = "AMB0301";
    /// An empty key in the selector (row 2).
    EMPTY_SELECTOR_KEY = "AMB0302";
    /// A `*` in the selector (row 3).
    SELECTOR_WILDCARD = "AMB0303";
    /// A selector without labels (row 4; warning), or without any value.
    EMPTY_SELECTOR = "AMB0304";
    /// A target reference without a name (row 5), or `targetRefs` without any.
    TARGET_WITHOUT_NAME = "AMB0305";
    /// A target reference into another namespace (row 6).
    TARGET_NAMESPACE = "AMB0306";
    /// A target reference to a kind that a policy can't be attached to, or whose group isn't its kind's (row 7).
    TARGET_KIND = "AMB0307";
    /// A CUSTOM or DENY policy without `rules` (rows 8 and 14).
    ACTION_WITHOUT_RULES = "AMB0308";
    /// A CUSTOM policy without a provider (row 9).
    CUSTOM_WITHOUT_PROVIDER = "AMB0309";
    /// A source field or condition that CUSTOM doesn't support (rows 10 and 11).
    CUSTOM_UNSUPPORTED = "AMB0310";
    /// A provider on an action other than CUSTOM (row 13).
    PROVIDER_WITHOUT_CUSTOM = "AMB0311";
    /// `from` is written but empty (row 16).
    EMPTY_FROM = "AMB0312";
    /// A source without any field (row 17).
    EMPTY_SOURCE = "AMB0313";
    /// `serviceAccounts` together with `principals` or `namespaces` (row 18).
    ACCOUNTS_WITH_PRINCIPALS = "AMB0314";
    /// Not an address or CIDR (row 19).
    BAD_IP_BLOCK = "AMB0315";
    /// An empty value (row 20).
    EMPTY_VALUE = "AMB0316";
    /// Not a service account, or too many of them (rows 21 and 22).
    BAD_SERVICE_ACCOUNT = "AMB0317";
    /// Not a trust domain (row 23).
    BAD_TRUST_DOMAIN = "AMB0318";
    /// `to` is written but empty (row 24).
    EMPTY_TO = "AMB0319";
    /// An operation without any field (row 25).
    EMPTY_OPERATION = "AMB0320";
    /// Not a port (row 26).
    BAD_PORT = "AMB0321";
    /// A path template that can't be one (rows 27 to 29).
    BAD_PATH_TEMPLATE = "AMB0322";
    /// A condition without a key (row 30).
    EMPTY_CONDITION_KEY = "AMB0323";
    /// A condition with neither `values` nor `notValues` (row 31).
    CONDITION_WITHOUT_VALUES = "AMB0324";
    /// A condition on an attribute that doesn't exist (row 32).
    UNKNOWN_ATTRIBUTE = "AMB0325";
    /// A DENY that falls on all TCP traffic in its scope (row 33; warning).
    DENIES_ALL_TCP = "AMB0326";
    /// A value that no request can ever have (`spec/authorization.md` 2.12).
    NEVER_MATCHES = "AMB0327";
    /// A value that is legal but hardly what was meant (warning; an error where it opens what reads as closed).
    SUSPICIOUS_VALUE = "AMB0328";
    /// The `istio.io/dry-run` annotation isn't a boolean (2.12, row 19).
    BAD_DRY_RUN = "AMB0329";
    /// More rules, sources, operations or target references than the schema allows (2.1).
    TOO_MANY = "AMB0330";
    /// A CUSTOM policy that is to be a dry run: it denies what it matches.
    CUSTOM_DRY_RUN = "AMB0331";
    /// A PeerAuthentication that sets single ports without selecting pods.
    PORTS_WITHOUT_SELECTOR = "AMB0332";
    /// A PeerAuthentication with a list of ports that is empty.
    EMPTY_PORTS = "AMB0333";
    /// A JWT rule that can't work as it is written.
    BAD_JWT_RULE = "AMB0340";
    /// A key set that can't be used, or only in part.
    BAD_JWKS = "AMB0341";
    /// A key set that holds a private or symmetric key.
    PRIVATE_KEY = "AMB0342";

    /// A waypoint's listener on another port than 15008.
    WAYPOINT_PORT = "AMB0401";
    /// A waypoint's listener with another protocol than HBONE.
    WAYPOINT_PROTOCOL = "AMB0402";
    /// A Gateway whose listeners Kubernetes would refuse.
    BAD_LISTENER = "AMB0403";
    /// An annotation of a waypoint's Gateway that can't be used.
    BAD_GATEWAY_ANNOTATION = "AMB0404";

    /// A Service's ports that Kubernetes would refuse.
    BAD_SERVICE_PORT = "AMB0501";
    /// A pod's containers that Kubernetes would refuse.
    BAD_CONTAINER = "AMB0502";
    /// A Deployment whose selector doesn't select its own pods.
    BAD_DEPLOYMENT_SELECTOR = "AMB0503";

    /// A second MeshConfig.
    SECOND_MESH_CONFIG = "AMB0601";
    /// A value of a MeshConfig that can't be used.
    BAD_MESH_CONFIG = "AMB0602";
    /// An extension provider that can't be asked.
    BAD_PROVIDER = "AMB0603";

    /// A route that is attached to nothing, or to what can't be named so.
    BAD_PARENT = "AMB0701";
    /// A match that can't be one.
    BAD_MATCH = "AMB0702";
    /// A filter that can't be one, or that isn't allowed where it is.
    BAD_FILTER = "AMB0703";
    /// A backend that can't be one.
    BAD_BACKEND = "AMB0704";
    /// Timeouts that can't be ones.
    BAD_TIMEOUT = "AMB0705";
    /// Retries that can't be ones.
    BAD_RETRY = "AMB0706";
    /// A rule's name that can't be one, or that another rule has.
    BAD_RULE_NAME = "AMB0707";
    /// A part of a route that isn't supported (warning): requests that its rule matches are answered 500.
    UNSUPPORTED_ROUTE = "AMB0708";
    /// A part of a route that does nothing here (warning).
    ROUTE_WITHOUT_EFFECT = "AMB0709";

    /// A host that can't be one.
    BAD_HOST = "AMB0801";
    /// A subset that can't be one, or whose name another has.
    BAD_SUBSET = "AMB0802";
    /// A setting of a destination that can't be one.
    BAD_TRAFFIC_SETTING = "AMB0803";
    /// A setting of a destination that isn't supported, and without which requests can't be sent as they should be.
    UNSUPPORTED_TRAFFIC_SETTING = "AMB0804";
    /// A setting of a destination that does nothing here (warning).
    TRAFFIC_SETTING_WITHOUT_EFFECT = "AMB0805";

    /// A rate limit that can't be one.
    BAD_RATE_LIMIT = "AMB0901";
    /// A fault that can't be made.
    BAD_FAULT = "AMB0902";
    /// A budget of retries that can't be one.
    BAD_RETRY_BUDGET = "AMB0903";
}

/// True for an error in a policy whose meaning is known all the same: it never matches what its author expects, Kubernetes
/// would refuse its name, or it denies what it was only to try out.
#[must_use]
pub fn is_lint(code: Code) -> bool {
    [NEVER_MATCHES, BAD_NAME, BAD_LABEL, DUPLICATE_OBJECT, CUSTOM_DRY_RUN].contains(&code)
}
