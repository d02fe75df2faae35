//! Which endpoint gets the next request.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{authorization_policy::null_as_default, routes::spec};

spec! {
    /// Which endpoint gets the next request.
    LoadBalancer {
        /// One of the usual ways.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub simple: Option<SimpleBalancing>,
        /// Requests with the same value go to the same endpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub consistent_hash: Option<ConsistentHash>,
        /// Which endpoints are near.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub locality_lb_setting: Option<LocalitySettings>,
        /// A slow start for new endpoints. Not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub warmup_duration_secs: Option<String>,
        /// A slow start for new endpoints. Not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub warmup: Option<Warmup>,
    }
}

/// One of the usual ways to choose an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleBalancing {
    /// The same as [`SimpleBalancing::LeastRequest`].
    #[default]
    Unspecified,
    /// An older name of [`SimpleBalancing::LeastRequest`].
    LeastConn,
    /// Any.
    Random,
    /// The address that the client asked for, where it is an endpoint's own.
    Passthrough,
    /// One after the other.
    RoundRobin,
    /// The less busy of two.
    LeastRequest,
}

spec! {
    /// What a request is assigned to its endpoint by: exactly one.
    ConsistentHash {
        /// The value of this header.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub http_header_name: String,
        /// A cookie.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub http_cookie: Option<HttpCookie>,
        /// The client's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub use_source_ip: Option<bool>,
        /// The value of this parameter.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub http_query_parameter_name: String,
        /// A size that has no meaning here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub minimum_ring_size: Option<u64>,
        /// An algorithm that has no meaning here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ring_hash: Option<RingHash>,
        /// An algorithm that has no meaning here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub maglev: Option<Maglev>,
    }
}

spec! {
    /// A cookie.
    HttpCookie {
        /// Its name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
        /// Path of one that would be made.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub path: String,
        /// How long one that would be made is kept. None is made here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ttl: Option<String>,
        /// Attributes of one that would be made.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub attributes: Vec<CookieAttribute>,
    }
}

spec! {
    /// An attribute of a cookie.
    CookieAttribute {
        /// Its name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
        /// Its value.
        #[serde(default, deserialize_with = "null_as_default")]
        pub value: String,
    }
}

spec! {
    /// Envoy's ring.
    RingHash {
        /// Its least size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub minimum_ring_size: Option<u64>,
    }
}

spec! {
    /// Google's table.
    Maglev {
        /// Its size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub table_size: Option<u64>,
    }
}

spec! {
    /// Which endpoints are near: at most one of the first three.
    LocalitySettings {
        /// Shares of the traffic from a locality.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub distribute: Vec<Distribute>,
        /// The region to turn to when one fails.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub failover: Vec<Failover>,
        /// Labels that near endpoints share with the client. Not supported.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub failover_priority: Vec<String>,
        /// False switches it off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub enabled: Option<bool>,
    }
}

spec! {
    /// Shares of the traffic from a locality.
    Distribute {
        /// `region/zone/subzone`, of which later parts may be left out or `*`.
        #[serde(default, deserialize_with = "null_as_default")]
        pub from: String,
        /// Localities, written the same way, with shares that make 100.
        #[serde(default, deserialize_with = "null_as_default")]
        pub to: BTreeMap<String, u32>,
    }
}

spec! {
    /// The region to turn to when one fails.
    Failover {
        /// This one.
        #[serde(default, deserialize_with = "null_as_default")]
        pub from: String,
        /// Another.
        #[serde(default, deserialize_with = "null_as_default")]
        pub to: String,
    }
}

spec! {
    /// A slow start for new endpoints.
    Warmup {
        /// How long it takes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub duration: Option<String>,
        /// Where it begins.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub minimum_percent: Option<serde_json::Number>,
        /// How steep it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub aggression: Option<serde_json::Number>,
    }
}
