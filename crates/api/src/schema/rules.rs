//! Rules in Kubernetes' expression language (CEL), as Istio's definitions have them.

use serde::Serialize;

/// A rule, and what is said of who breaks it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rule {
    rule: &'static str,
    message: &'static str,
}

/// A group of an API, or the core group.
pub(crate) const GROUP_PATTERN: &str = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A kind.
pub(crate) const KIND_PATTERN: &str = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$";
/// Longest value of a label.
pub(crate) const MAX_LABEL_VALUE: u32 = 63;
/// Most labels in a selector.
pub(crate) const MAX_LABELS: u32 = 4096;

pub(crate) const ONE_ATTACHMENT: [Rule; 1] = [Rule {
    rule: "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
    message: "only one of targetRefs or selector can be set",
}];

pub(crate) const LABEL_KEYS: [Rule; 2] = [
    Rule { rule: "self.all(key, !key.contains('*'))", message: "wildcard not allowed in label key match" },
    Rule { rule: "self.all(key, key.size() != 0)", message: "key must not be empty" },
];

pub(crate) const LABEL_VALUE: [Rule; 1] =
    [Rule { rule: "!self.contains('*')", message: "wildcard not allowed in label value match" }];

pub(crate) const NO_NAMESPACE: [Rule; 1] =
    [Rule { rule: "self.size() == 0", message: "cross namespace referencing is not currently supported" }];

pub(crate) const TARGET_KINDS: [Rule; 1] = [Rule {
    rule: "[has(self.group) ? self.group : '', self.kind] in [['', 'Service'], ['core', 'Service'], \
           ['networking.istio.io', 'ServiceEntry'], ['gateway.networking.k8s.io', 'Gateway'], \
           ['gateway.networking.k8s.io', 'GatewayClass']]",
    message: "targetRef must be to one of core/Service, networking.istio.io/ServiceEntry, \
              gateway.networking.k8s.io/Gateway, gateway.networking.k8s.io/GatewayClass",
}];

pub(crate) const SERVICE_ACCOUNTS_ALONE: [Rule; 1] = [Rule {
    rule: "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) && \
           !has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)) : true",
    message: "Cannot set serviceAccounts with namespaces or principals",
}];

pub(crate) const PORTS_NEED_SELECTOR: [Rule; 1] = [Rule {
    rule: "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) ? \
           self.selector.matchLabels : {}).size() > 0) : true",
    message: "portLevelMtls requires selector",
}];

pub(crate) const PORT_KEYS: [Rule; 1] =
    [Rule { rule: "self.all(key, 0 < int(key) && int(key) <= 65535)", message: "port must be between 1-65535" }];

pub(crate) const ONE_KEY_SOURCE: [Rule; 1] = [Rule {
    rule: "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) + (has(self.jwks) ? 1 : 0) <= 1",
    message: "only one of jwks or jwksUri can be set",
}];

pub(crate) const HTTP_URL: [Rule; 1] =
    [Rule { rule: "url(self).getScheme() in ['http', 'https']", message: "url must have scheme http:// or https://" }];

pub(crate) const DURATION: [Rule; 1] =
    [Rule { rule: "duration(self) >= duration('1ms')", message: "must be a valid duration greater than 1ms" }];
