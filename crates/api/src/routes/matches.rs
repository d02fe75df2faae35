//! Which requests a rule is about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec;
use crate::authorization_policy::null_as_default;

spec! {
    /// All of what is written must hold.
    HttpMatch {
        /// The path; absent matches all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub path: Option<PathMatch>,
        /// All of these headers.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub headers: Vec<HeaderMatch>,
        /// All of these query parameters.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub query_params: Vec<QueryMatch>,
        /// The method, in upper case.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub method: Option<String>,
    }
}

spec! {
    /// A path, without the query.
    PathMatch {
        /// Absent is a prefix.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<PathMatchType>,
        /// Absent is `/`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub value: Option<String>,
    }
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// To the letter.
    Exact,
    /// Its first elements.
    #[default]
    PathPrefix,
    /// As a whole, by an expression in the syntax of RE2.
    RegularExpression,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MatchType {
    /// To the letter.
    #[default]
    Exact,
    /// As a whole, by an expression in the syntax of RE2.
    RegularExpression,
}

spec! {
    /// A header.
    HeaderMatch {
        /// Absent is exact.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<MatchType>,
        /// Its name.
        pub name: String,
        /// Its value.
        pub value: String,
    }
}

spec! {
    /// A query parameter; of several of one name the first counts.
    QueryMatch {
        /// Absent is exact.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<MatchType>,
        /// Its name.
        pub name: String,
        /// Its value.
        pub value: String,
    }
}

spec! {
    /// All of what is written must hold.
    GrpcMatch {
        /// Service and method; absent matches all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub method: Option<GrpcMethodMatch>,
        /// All of these headers.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub headers: Vec<HeaderMatch>,
    }
}

spec! {
    /// Service and method of a call; at least one of the two.
    GrpcMethodMatch {
        /// Absent is exact.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<MatchType>,
        /// Fully qualified name of the service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub service: Option<String>,
        /// The method.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub method: Option<String>,
    }
}
