//! How much endpoints get at once, and when one of them gets nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::routes::spec;

spec! {
    /// How much endpoints get at once.
    ConnectionPool {
        /// Of any connections.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tcp: Option<TcpSettings>,
        /// Of requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub http: Option<HttpSettings>,
    }
}

spec! {
    /// How connections are made and kept.
    TcpSettings {
        /// Open at once to all endpoints together.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_connections: Option<u32>,
        /// How long reaching an endpoint may take; 10 s unless it says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub connect_timeout: Option<String>,
        /// Probes of silent connections. Not supported: the mesh's tunnels have their own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tcp_keepalive: Option<TcpKeepalive>,
        /// How long a connection may last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_connection_duration: Option<String>,
        /// How long one that isn't HTTP may be silent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idle_timeout: Option<String>,
    }
}

spec! {
    /// Probes of silent connections.
    TcpKeepalive {
        /// How many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub probes: Option<u32>,
        /// After this long.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub time: Option<String>,
        /// With this pause.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub interval: Option<String>,
    }
}

spec! {
    /// How requests are sent.
    HttpSettings {
        /// Requests that wait for a connection at once.
        #[serde(default, rename = "http1MaxPendingRequests", skip_serializing_if = "Option::is_none")]
        pub http1_max_pending_requests: Option<u32>,
        /// Requests in flight at once, of either version.
        #[serde(default, rename = "http2MaxRequests", skip_serializing_if = "Option::is_none")]
        pub http2_max_requests: Option<u32>,
        /// Requests on one connection, one after the other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_requests_per_connection: Option<u32>,
        /// Retries in flight at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_retries: Option<u32>,
        /// How long a connection without a request is kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idle_timeout: Option<String>,
        /// Whether HTTP/1.1 becomes HTTP/2.
        #[serde(default, rename = "h2UpgradePolicy", skip_serializing_if = "Option::is_none")]
        pub h2_upgrade_policy: Option<H2UpgradePolicy>,
        /// Endpoints are spoken to as the client speaks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub use_client_protocol: Option<bool>,
        /// Requests at once on one HTTP/2 connection. Not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_concurrent_streams: Option<u32>,
    }
}

/// Whether HTTP/1.1 becomes HTTP/2 on its way to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// As the port says.
    #[default]
    Default,
    /// As the port says.
    DoNotUpgrade,
    /// It does.
    Upgrade,
}

spec! {
    /// When an endpoint gets nothing for a while.
    OutlierDetection {
        /// An older name, without a meaning.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub consecutive_errors: Option<i64>,
        /// Endpoints that can't be reached are counted apart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub split_external_local_origin_errors: Option<bool>,
        /// So many failures to reach it, where they are counted apart; 5 unless it says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub consecutive_local_origin_failures: Option<u32>,
        /// So many answers 502, 503 or 504, one after the other; 0, the default, for never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub consecutive_gateway_errors: Option<u32>,
        /// So many answers 5xx, one after the other; 5 unless it says otherwise, 0 for never.
        #[serde(default, rename = "consecutive5xxErrors", skip_serializing_if = "Option::is_none")]
        pub consecutive_5xx_errors: Option<u32>,
        /// How often it is looked at whether an endpoint may come back; 10 s unless it says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub interval: Option<String>,
        /// How long it is left out, times how often that has happened; 30 s unless it says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub base_ejection_time: Option<String>,
        /// At most this part of the endpoints is left out at once; 10 unless it says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_ejection_percent: Option<i64>,
        /// Below this part of endpoints that aren't left out, none is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub min_health_percent: Option<i64>,
    }
}
