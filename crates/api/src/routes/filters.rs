//! What a route does to requests and responses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendReference, spec};
use crate::authorization_policy::null_as_default;

/// One thing that is done; `type` says which of the other fields counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Which it is.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// Changes to the request's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the response's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// A copy of the request to somewhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<MirrorFilter>,
    /// An answer that sends the client elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<Redirect>,
    /// Another host or path.
    #[serde(default, rename = "urlRewrite", skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// What pages of other origins may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// An external authorizer: not supported here, a CUSTOM AuthorizationPolicy is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_auth: Option<ExternalAuth>,
    /// Something that only one implementation knows: not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension_ref: Option<LocalObjectReference>,
}

/// Which filter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the variants are the values")]
pub enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    #[serde(rename = "CORS")]
    Cors,
    ExternalAuth,
    ExtensionRef,
}

spec! {
    /// Changes to headers.
    HeaderModifier {
        /// Replaces all lines of the name.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub set: Vec<HeaderValue>,
        /// Adds a line.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub add: Vec<HeaderValue>,
        /// Removes all lines of the name.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub remove: Vec<String>,
    }
}

spec! {
    /// A header.
    HeaderValue {
        /// Its name.
        pub name: String,
        /// Its value.
        pub value: String,
    }
}

spec! {
    /// A copy of requests, whose response nobody sees.
    MirrorFilter {
        /// Where it goes.
        pub backend_ref: BackendReference,
        /// How many of 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub percent: Option<u32>,
        /// How many of how many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub fraction: Option<Fraction>,
    }
}

spec! {
    /// A part of a whole.
    Fraction {
        /// The part.
        pub numerator: u32,
        /// The whole; absent is 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub denominator: Option<u32>,
    }
}

spec! {
    /// An answer that sends the client elsewhere.
    Redirect {
        /// `http` or `https`; absent is the request's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub scheme: Option<Scheme>,
        /// Host; absent is the request's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub hostname: Option<String>,
        /// Path; absent is the request's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub path: Option<PathModifier>,
        /// Port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
        /// Status; absent is 302.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub status_code: Option<u16>,
    }
}

/// Scheme of a redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are the values")]
pub enum Scheme {
    Http,
    Https,
}

spec! {
    /// Another host or path for the backend.
    UrlRewrite {
        /// Host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub hostname: Option<String>,
        /// Path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub path: Option<PathModifier>,
    }
}

/// Another path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which of the other fields counts.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// Instead of the whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// Instead of the prefix that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

/// What of the path is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the variants are the values")]
pub enum PathModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

spec! {
    /// What pages of other origins may do (the Fetch standard's CORS protocol).
    Cors {
        /// Origins: `*`, `https://a.example`, or with `*` at the start of the host.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub allow_origins: Vec<String>,
        /// With cookies and the like.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub allow_credentials: Option<bool>,
        /// Methods, or `*`.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub allow_methods: Vec<String>,
        /// Request headers, or `*`.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub allow_headers: Vec<String>,
        /// Response headers that the page may read, or `*`.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub expose_headers: Vec<String>,
        /// Seconds for which the answer holds; absent is 5.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_age: Option<u32>,
    }
}

/// An external authorizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalAuth {
    /// What it speaks.
    pub protocol: ExternalAuthProtocol,
    /// Where it is.
    pub backend_ref: BackendReference,
    /// For HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<ExternalAuthHttp>,
    /// For gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<ExternalAuthGrpc>,
    /// What it gets of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_body: Option<ForwardBody>,
}

/// What an external authorizer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the variants are the values")]
pub enum ExternalAuthProtocol {
    Http,
    Grpc,
}

spec! {
    /// Settings of an external authorizer over HTTP.
    ExternalAuthHttp {
        /// Path that is asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub path: Option<String>,
        /// Headers it gets.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub allowed_headers: Vec<String>,
        /// Headers taken from its answer.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub allowed_response_headers: Vec<String>,
    }
}

spec! {
    /// Settings of an external authorizer over gRPC.
    ExternalAuthGrpc {
        /// Headers it gets.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub allowed_headers: Vec<String>,
    }
}

spec! {
    /// What an external authorizer gets of the body.
    ForwardBody {
        /// So many bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_size: Option<u32>,
    }
}

spec! {
    /// An object of the route's namespace.
    LocalObjectReference {
        /// API group.
        pub group: String,
        /// Kind.
        pub kind: String,
        /// Name.
        pub name: String,
    }
}

/// The subset of a DestinationRule that a backend's filter names: Ambit's own extension, since routes of the Gateway API
/// know no subsets.
#[must_use]
pub fn subset_of(filter: &Filter) -> Option<&str> {
    let reference = filter.extension_ref.as_ref().filter(|_| filter.kind == FilterType::ExtensionRef)?;
    (reference.group == SUBSET_GROUP && reference.kind == SUBSET_KIND).then_some(reference.name.as_str())
}

const SUBSET_GROUP: &str = "ambit.dev";
const SUBSET_KIND: &str = "Subset";
