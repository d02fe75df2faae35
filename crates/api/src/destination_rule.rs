//! `networking.istio.io/v1 DestinationRule`: how a waypoint treats the endpoints of a service.

mod balancing;
mod pool;

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    balancing::{
        ConsistentHash, CookieAttribute, Distribute, Failover, HttpCookie, LoadBalancer, LocalitySettings, Maglev,
        RingHash, SimpleBalancing, Warmup,
    },
    pool::{ConnectionPool, H2UpgradePolicy, HttpSettings, OutlierDetection, TcpKeepalive, TcpSettings},
};
use crate::{
    authorization_policy::{WorkloadSelector, null_as_default},
    request_authentication::go_duration,
    routes::spec,
};

/// Group of the kind.
pub const GROUP: &str = "networking.istio.io";

/// A DestinationRule with the metadata that gives it its place among others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRule {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// When it was made, in RFC 3339; nothing for one read from a file. Of several for one host the oldest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it says.
    #[serde(default)]
    pub spec: DestinationRuleSpec,
}

spec! {
    /// The `spec` of a DestinationRule.
    DestinationRuleSpec {
        /// The Service: its name in the object's own namespace, its full name, or `*` and the end of full names.
        #[serde(default, deserialize_with = "null_as_default")]
        pub host: String,
        /// For all ports and endpoints.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub traffic_policy: Option<TrafficPolicy>,
        /// Named parts of the endpoints.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub subsets: Vec<Subset>,
        /// Namespaces whose waypoints follow it: `.` is its own, `*` are all, which is the default.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub export_to: Vec<String>,
        /// Clients that it is for. Waypoints are none of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub workload_selector: Option<WorkloadSelector>,
    }
}

spec! {
    /// How endpoints are treated.
    TrafficPolicy {
        /// Which of them gets the next request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub load_balancer: Option<LoadBalancer>,
        /// How much they get at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub connection_pool: Option<ConnectionPool>,
        /// When one of them gets nothing for a while.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub outlier_detection: Option<OutlierDetection>,
        /// TLS that the waypoint would speak inside of the mesh's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tls: Option<Tls>,
        /// Instead of all of the above for single ports.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub port_level_settings: Vec<PortPolicy>,
        /// Tunnels through another proxy. Not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tunnel: Option<Tunnel>,
        /// A PROXY header for the application. Not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub proxy_protocol: Option<ProxyProtocol>,
        /// How much of the traffic retries may be. Not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub retry_budget: Option<RetryBudget>,
    }
}

spec! {
    /// How the endpoints are treated on one port. What it leaves out has its default there.
    PortPolicy {
        /// The service port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<PortSelector>,
        /// Which of them gets the next request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub load_balancer: Option<LoadBalancer>,
        /// How much they get at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub connection_pool: Option<ConnectionPool>,
        /// When one of them gets nothing for a while.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub outlier_detection: Option<OutlierDetection>,
        /// TLS that the waypoint would speak inside of the mesh's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tls: Option<Tls>,
    }
}

spec! {
    /// A port by its number.
    PortSelector {
        /// The number.
        #[serde(default, deserialize_with = "null_as_default")]
        pub number: u32,
    }
}

spec! {
    /// A named part of the endpoints.
    Subset {
        /// Its name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
        /// Labels that its pods have.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
        /// What is different for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub traffic_policy: Option<TrafficPolicy>,
    }
}

spec! {
    /// TLS that the waypoint would speak inside of the mesh's own.
    Tls {
        /// The mode.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mode: Option<TlsMode>,
        /// The waypoint's certificate.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub client_certificate: String,
        /// The waypoint's key.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub private_key: String,
        /// Who may sign the endpoint's certificate.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub ca_certificates: String,
        /// A Secret with all of these.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub credential_name: String,
        /// Names that the endpoint's certificate may have.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub subject_alt_names: Vec<String>,
        /// The name that is asked for.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub sni: String,
        /// Certificates aren't verified.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub insecure_skip_verify: Option<bool>,
        /// Certificates that were revoked.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub ca_crl: String,
    }
}

/// Which TLS the waypoint would speak inside of the mesh's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None.
    Disable,
    /// One where only the endpoint has a certificate.
    Simple,
    /// One where both have.
    Mutual,
    /// The mesh's own, which is always spoken.
    IstioMutual,
}

spec! {
    /// A tunnel through another proxy.
    Tunnel {
        /// Method.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub protocol: String,
        /// The tunnel's end.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub target_host: String,
        /// Its port.
        #[serde(default, deserialize_with = "null_as_default")]
        pub target_port: u32,
    }
}

spec! {
    /// A PROXY header for the application.
    ProxyProtocol {
        /// `V1` or `V2`.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
        pub version: String,
    }
}

spec! {
    /// How much of the traffic retries may be.
    RetryBudget {
        /// Part of the requests in flight.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub percent: Option<serde_json::Number>,
        /// Always this many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub min_retry_concurrency: Option<u32>,
    }
}

/// A text that isn't a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a duration; write one like `30s`")]
pub struct NotADuration;

/// A duration as Istio writes it: `1h2m3.5s`, `500ms`. More than nothing.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    go_duration(text)
}

/// The same; `0s` is read, too, and means never.
///
/// # Errors
/// It isn't one.
pub fn duration_or_never(text: &str) -> Result<Option<Duration>, NotADuration> {
    if !text.is_empty() && text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end_matches('0').is_empty() {
        return if text.starts_with('0') && text.ends_with('s') { Ok(None) } else { Err(NotADuration) };
    }
    go_duration(text).map(Some).ok_or(NotADuration)
}

// === impl DestinationRule ===

impl DestinationRule {
    /// The full name that its host stands for, in lower case: with a `*` before the first dot, all names that end so.
    /// As in Istio, only a name without a dot is short.
    #[must_use]
    pub fn full_host(&self, cluster_domain: &str) -> String {
        let host = self.spec.host.to_ascii_lowercase();
        if host.is_empty() || host == "*" || host.contains('.') {
            return host;
        }
        format!("{host}.{}.svc.{cluster_domain}", self.namespace)
    }

    /// True if waypoints of this namespace follow it; those of its own always do, as in Istio.
    #[must_use]
    pub fn is_exported_to(&self, namespace: &str) -> bool {
        let here = |to: &String| to == "*" || to == namespace;
        let to = &self.spec.export_to;
        self.namespace == namespace || to.is_empty() || to.iter().any(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_a_dot_are_short() {
        let full = |host: &str| {
            let spec = DestinationRuleSpec { host: host.into(), ..DestinationRuleSpec::default() };
            DestinationRule { namespace: "a".into(), spec, ..DestinationRule::default() }.full_host("cluster.local")
        };
        assert_eq!(full("Reviews"), "reviews.a.svc.cluster.local");
        assert_eq!(full("reviews.b"), "reviews.b");
        assert_eq!(full("*.b.svc.cluster.local"), "*.b.svc.cluster.local");
        assert_eq!(full("*"), "*");
    }

    #[test]
    fn nothing_is_never_where_that_is_meant() {
        for zero in ["0s", "0ms", "00s"] {
            assert_eq!(duration_or_never(zero), Ok(None), "{zero}");
        }
        assert_eq!(duration_or_never("10s"), Ok(Some(Duration::from_secs(10))));
        assert_eq!(duration_or_never("0.5s"), Ok(Some(Duration::from_millis(500))));
        for bad in ["", "0", "s", "0m!", "10", "0s0"] {
            assert_eq!(duration_or_never(bad), Err(NotADuration), "{bad}");
        }
    }
}
