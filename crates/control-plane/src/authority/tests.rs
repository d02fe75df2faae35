//! The rules without an API server; `tests/kube/tests/authority.rs` has the same against a real one.

mod discovery;
mod folder;
mod impersonation;
mod reviews;
mod rotation;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambit_identity::{BoxFuture, SpiffeId, SystemClock};
use ambit_xds::server::Peer;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use super::*;

const TOKEN: &str = "the-token";

/// Pods by namespace and name.
#[derive(Clone, Default)]
struct Pods(BTreeMap<(String, String), PodFacts>);

/// Knows one token.
struct Desk {
    status: TokenReviewStatus,
    asked: Arc<AtomicUsize>,
}

/// Whom the authorizer of a test sees.
#[derive(Clone)]
struct World {
    pods: Pods,
    trusted: Vec<&'static str>,
    account: (&'static str, &'static str),
    extra: Vec<(&'static str, &'static str)>,
    certificate: Option<SpiffeId>,
    token: Option<&'static str>,
    cluster: &'static str,
}

// === impl Pods ===

impl PodDirectory for Pods {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        self.0.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn runs_on_node(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.0.iter().any(|((in_namespace, _), pod)| {
            let here = pod.node == node && in_namespace == namespace && pod.service_account == service_account;
            here && pod.runs && pod.enrolled
        })
    }
}

// === impl Desk ===

impl Reviewer for Desk {
    fn review<'a>(&'a self, token: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let refused = TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() };
        let good = token == TOKEN || token.contains(".the-token.");
        Box::pin(std::future::ready(Ok(if good { self.status.clone() } else { refused })))
    }
}

// === impl World ===

impl World {
    /// A node proxy on node `n1`, beside a pod of `app/web`; a waypoint `app/way` on the same node.
    fn new() -> Self {
        let mut pods = Pods::default();
        let pod = |uid: &str, account: &str, enrolled, gateway: &str| PodFacts {
            uid: uid.into(),
            service_account: account.into(),
            node: "n1".into(),
            runs: true,
            enrolled,
            gateway: gateway.into(),
        };
        let mut put = |namespace: &str, name: &str, facts| pods.0.insert((namespace.into(), name.into()), facts);
        put("istio-system", "ztunnel-x", pod("u-z", "ztunnel", false, ""));
        put("app", "web-1", pod("u-w", "web", true, ""));
        put("app", "way-1", pod("u-y", "way", false, "way"));
        Self {
            pods,
            trusted: vec!["istio-system/ztunnel"],
            account: ("istio-system", "ztunnel"),
            extra: vec![("pod-name", "ztunnel-x"), ("pod-uid", "u-z")],
            certificate: None,
            token: Some(TOKEN),
            cluster: "Kubernetes",
        }
    }

    /// The same, as the waypoint.
    fn waypoint() -> Self {
        Self { account: ("app", "way"), extra: vec![("pod-name", "way-1"), ("pod-uid", "u-y")], ..Self::new() }
    }

    fn pod(&mut self, namespace: &str, name: &str) -> &mut PodFacts {
        self.pods.0.get_mut(&(namespace.to_owned(), name.to_owned())).expect("the test has it")
    }

    fn authorizer(&self) -> Authorizer {
        let (namespace, name) = self.account;
        let extra = self.extra.iter();
        let extra = extra.map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![(*value).into()]));
        let user = UserInfo {
            username: Some(format!("system:serviceaccount:{namespace}:{name}")),
            groups: Some(vec!["system:serviceaccounts".into()]),
            extra: Some(extra.collect()),
            ..UserInfo::default()
        };
        let status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["istio-ca".into()]),
            user: Some(user),
            error: None,
        };
        let desk = Arc::new(Desk { status, asked: Arc::default() });
        let settings = AuthorizationSettings {
            trust_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            trusted_node_accounts: self.trusted.iter().map(|name| name.parse().expect("a name")).collect(),
        };
        let reviews = TokenReviews::new(desk, vec!["istio-ca".into()], Arc::new(SystemClock));
        Authorizer::new(reviews, Arc::new(self.pods.clone()), settings)
    }

    fn peer(&self) -> Peer {
        let bearer = self.token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("clusterid", self.cluster)];
        headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        headers.retain(|(_, value)| !value.is_empty());
        Peer::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), self.certificate.clone(), &headers)
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("the test names a valid identity")
}
