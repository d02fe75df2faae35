//! What an object says to the mesh, wherever it comes from: files and API servers are read alike.

use ambit_api::{AuthorizationPolicy, Diagnostic, Gateway as KubeGateway, Resource};
use ambit_mesh::{
    authentication::TokenRules,
    destinations,
    inputs::{
        AllowedNamespaces, Change, Gateway, LabelOperator, LabelRequirement, LabelSelector, Labels, Listener,
        NamespacedName, Policy, ServicePort, TargetPort,
    },
    retry_budgets::RetryPolicy,
    routes::Route,
    traffic::TrafficRules,
};
use ambit_xds::workload::AppProtocol;
use gateway_api::gateways::{GatewayListenersAllowedRoutesNamespaces, GatewayListenersAllowedRoutesNamespacesFrom};
use k8s_openapi::{
    api::core::v1::ServicePort as KubePort,
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

/// Takes in an AuthorizationPolicy; with a rejection as one that can't be enforced.
pub(crate) fn authorization(policy: AuthorizationPolicy, rejection: Option<&Diagnostic>) -> Change {
    let name = NamespacedName::new(&policy.namespace, &policy.name);
    let policy = match rejection {
        None => Policy::new(policy),
        Some(rejection) => Policy::rejected(policy, &rejection.reason()),
    };
    Change::Policy(name, Some(policy))
}

/// Takes in what else is written for proxies, in the same way; nothing for other kinds.
pub(crate) fn rules(resource: &Resource, rejection: Option<&Diagnostic>) -> Option<Change> {
    let name = NamespacedName::new(resource.namespace().unwrap_or_default(), resource.name());
    let reason = rejection.map(Diagnostic::reason);
    let reason = reason.as_deref();
    Some(match resource {
        Resource::PeerAuthentication(policy) => Change::PeerAuthentication(name, Some((**policy).clone())),
        Resource::Route(route) => {
            let route = (**route).clone();
            let route = match reason {
                None => Route::new(route),
                Some(reason) => Route::rejected(route, reason),
            };
            Change::Route(route.key(), Some(route))
        }
        Resource::RequestAuthentication(rules) => {
            let rules = (**rules).clone();
            Change::RequestAuthentication(
                name,
                Some(match reason {
                    None => TokenRules::new(rules),
                    Some(reason) => TokenRules::rejected(rules, reason),
                }),
            )
        }
        Resource::TrafficPolicy(rules) => {
            let rules = (**rules).clone();
            Change::TrafficPolicy(
                name,
                Some(match reason {
                    None => TrafficRules::new(rules),
                    Some(reason) => TrafficRules::rejected(rules, reason),
                }),
            )
        }
        Resource::BackendTrafficPolicy(policy) => {
            let policy = (**policy).clone();
            Change::RetryPolicy(
                name,
                Some(match reason {
                    None => RetryPolicy::new(policy),
                    Some(_) => RetryPolicy::rejected(policy),
                }),
            )
        }
        Resource::DestinationRule(rule) => {
            let rule = (**rule).clone();
            Change::DestinationRule(
                name,
                Some(match reason {
                    None => destinations::Rule::new(rule),
                    Some(reason) => destinations::Rule::rejected(rule, reason),
                }),
            )
        }
        _ => return None,
    })
}

/// Labels as they are written.
pub(crate) fn labels(metadata: Option<&ObjectMeta>) -> Labels {
    metadata.and_then(|metadata| metadata.labels.clone()).unwrap_or_default()
}

/// A port as it is written; nothing if its number is none.
pub(crate) fn service_port(port: &KubePort) -> Option<ServicePort> {
    let number = u16::try_from(port.port).ok().filter(|number| *number != 0)?;
    let target = match &port.target_port {
        Some(IntOrString::Int(0)) | None => TargetPort::Number(number),
        // A number that is none can lead nowhere; as a name it guards every port.
        Some(IntOrString::Int(target)) => {
            u16::try_from(*target).map_or_else(|_| TargetPort::Name(target.to_string()), TargetPort::Number)
        }
        Some(IntOrString::String(name)) => {
            name.parse().map_or_else(|_| TargetPort::Name(name.clone()), TargetPort::Number)
        }
    };
    Some(ServicePort { port: number, target, protocol: protocol(port), name: port.name.clone().unwrap_or_default() })
}

/// By `appProtocol`, else by the part of the port's name before the first `-`.
fn protocol(port: &KubePort) -> AppProtocol {
    let by_name = port.name.as_deref().map(|name| name.split('-').next().unwrap_or_default());
    match port.app_protocol.as_deref().or(by_name).unwrap_or_default().to_ascii_lowercase().as_str() {
        "http" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "https" | "tls" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

/// A Gateway as it is written; its address is said elsewhere.
pub(crate) fn gateway_of(labels: Labels, gateway: &KubeGateway) -> Gateway {
    let listener = |listener: &gateway_api::gateways::GatewayListeners| {
        let namespaces = listener.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref());
        Some(Listener {
            port: u16::try_from(listener.port).ok()?,
            protocol: listener.protocol.clone(),
            allowed: namespaces.map_or(AllowedNamespaces::Same, allowed),
        })
    };
    Gateway {
        labels,
        class: gateway.spec.gateway_class_name.clone(),
        listeners: gateway.spec.listeners.iter().filter_map(listener).collect(),
        vip: None,
        settings: gateway
            .metadata
            .annotations
            .as_ref()
            .map_or_else(ambit_api::GatewaySettings::default, |a| ambit_api::GatewaySettings::of(a).0),
    }
}

fn allowed(namespaces: &GatewayListenersAllowedRoutesNamespaces) -> AllowedNamespaces {
    match (&namespaces.from, &namespaces.selector) {
        (None | Some(GatewayListenersAllowedRoutesNamespacesFrom::Same), _) => AllowedNamespaces::Same,
        (Some(GatewayListenersAllowedRoutesNamespacesFrom::All), _) => AllowedNamespaces::All,
        (Some(GatewayListenersAllowedRoutesNamespacesFrom::Selector), Some(selector)) => {
            let expressions = selector.match_expressions.iter().flatten().map(|expression| {
                let values = || expression.values.iter().flatten().cloned().collect();
                let operator = match expression.operator.as_str() {
                    "In" => LabelOperator::In(values()),
                    "NotIn" => LabelOperator::NotIn(values()),
                    "Exists" => LabelOperator::Exists,
                    "DoesNotExist" => LabelOperator::DoesNotExist,
                    _ => return None,
                };
                Some(LabelRequirement { key: expression.key.clone(), operator })
            });
            expressions.collect::<Option<_>>().map_or(AllowedNamespaces::None, |match_expressions| {
                let match_labels = selector.match_labels.clone().unwrap_or_default();
                AllowedNamespaces::Selector(LabelSelector { match_labels, match_expressions })
            })
        }
        _ => AllowedNamespaces::None,
    }
}
