//! Who may watch what, and who gets which identity (`spec/control-plane.md` 4.6, 6.1 to 6.3).

use std::{collections::BTreeSet, str::FromStr, sync::Arc};

use ambit_identity::{BoxFuture, SpiffeId};
use ambit_xds::{
    discovery::Node,
    server::{Authorize, Denied, Peer},
};

use super::{
    Account, BoundPod, PodDirectory, PodFacts, TokenReviews,
    node_id::{Claims, Role},
};

/// Tells callers and allows them what they may have.
pub struct Authorizer {
    reviews: TokenReviews,
    pods: Arc<dyn PodDirectory>,
    settings: AuthorizationSettings,
}

/// What an operator says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationSettings {
    /// The trust domain that identities are given in.
    pub trust_domain: String,
    /// This cluster. A caller that says its token is of another isn't known here.
    pub cluster_id: String,
    /// The accounts of node proxies (`CA_TRUSTED_NODE_ACCOUNTS`): only they may ask for identities of others, and watch as
    /// node proxies. None means nobody may.
    pub trusted_node_accounts: BTreeSet<ServiceAccountName>,
}

/// `<namespace>/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAccountName {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub name: String,
}

/// Who calls.
enum Caller {
    /// By the token of its service account.
    Token(Arc<Account>),
    /// By its certificate.
    Certificate(SpiffeId),
}

// === impl AuthorizationSettings ===

impl AuthorizationSettings {
    /// Istio's rule for trust domains that come from an e-mail address: `@` becomes `.`.
    #[must_use]
    pub fn trust_domain_of(setting: &str) -> String {
        setting.replace('@', ".")
    }
}

// === impl Authorizer ===

impl Authorizer {
    /// Reviews tokens with `reviews`, and looks up pods in `pods`.
    #[must_use]
    pub fn new(reviews: TokenReviews, pods: Arc<dyn PodDirectory>, settings: AuthorizationSettings) -> Self {
        Self { reviews, pods, settings }
    }

    /// The token first, then the certificate: the first that holds counts.
    async fn caller(&self, peer: &Peer) -> Result<Caller, Denied> {
        let by_token = match peer.bearer() {
            None => Err("no bearer token".to_owned()),
            Some(_) if peer.cluster_id().is_some_and(|said| said != self.settings.cluster_id) => {
                Err("its token is of another cluster".to_owned())
            }
            Some(token) => self.reviews.account(token, peer.address.ip()).await.map_err(|error| error.to_string()),
        };
        let reason = match by_token {
            Ok(account) => return Ok(Caller::Token(account)),
            Err(reason) => reason,
        };
        match &peer.identity {
            Some(identity) if identity.trust_domain() == self.settings.trust_domain => {
                Ok(Caller::Certificate(identity.clone()))
            }
            Some(_) => Err(Denied::unauthenticated(format!("{reason}; its certificate is of another trust domain"))),
            None => Err(Denied::unauthenticated(format!("{reason}; no certificate of the mesh"))),
        }
    }

    /// A node proxy asks for the identity of another: all of 6.3.
    fn impersonation(&self, caller: &Caller, identity: &SpiffeId) -> Result<(), String> {
        let Caller::Token(account) = caller else {
            return Err("only who comes with a token may ask for another's identity".to_owned());
        };
        let Account { namespace, name, pod } = &**account;
        let bound = pod.as_ref().ok_or("its token isn't bound to a pod")?;
        if !self.is_trusted(namespace, name) {
            return Err(format!("`{namespace}/{name}` is not among the trusted node accounts"));
        }
        if identity.trust_domain() != self.settings.trust_domain {
            return Err(format!("`{identity}` is of another trust domain"));
        }
        let pod = self.bound_pod(namespace, name, bound)?;
        if pod.node.is_empty() {
            return Err(format!("its pod `{}` is on no node", bound.name));
        }
        if self.pods.runs_on_node(&pod.node, identity.namespace(), identity.service_account()) {
            return Ok(());
        }
        Err(format!("no pod of `{identity}` runs on its node `{}` in the mesh", pod.node))
    }

    /// The running pod that a token is bound to.
    fn bound_pod(&self, namespace: &str, account: &str, bound: &BoundPod) -> Result<PodFacts, String> {
        let pod = self.running_pod(namespace, &bound.name, account)?;
        if pod.uid != bound.uid {
            return Err(format!("its token is of an earlier pod `{}`", bound.name));
        }
        if bound.node.as_ref().is_some_and(|node| *node != pod.node) {
            return Err(format!("its token is of another node than its pod `{}`", bound.name));
        }
        Ok(pod)
    }

    fn running_pod(&self, namespace: &str, name: &str, account: &str) -> Result<PodFacts, String> {
        let pod = self.pods.pod(namespace, name).ok_or_else(|| format!("there is no pod `{namespace}/{name}`"))?;
        if pod.service_account != account {
            return Err(format!("the pod `{namespace}/{name}` runs under another service account"));
        }
        if !pod.runs {
            return Err(format!("the pod `{namespace}/{name}` has ended"));
        }
        Ok(pod)
    }

    /// What a client says of itself must be true, and it must be one of those that are served.
    fn discovery(&self, caller: &Caller, node: &Node) -> Result<(), String> {
        let claims = Claims::of(node)?;
        let (namespace, account) = caller.account();
        if claims.namespace != namespace {
            return Err(format!("it says it is in namespace `{}`, and is in `{namespace}`", claims.namespace));
        }
        if claims.service_account.is_some_and(|said| said != account) {
            return Err(format!("it says it has another service account than `{account}`"));
        }
        if claims.cluster.is_some_and(|said| said != self.settings.cluster_id) {
            return Err("it says it is in another cluster".to_owned());
        }
        let pod = match caller {
            Caller::Token(account) => {
                let bound = account.pod.as_ref().ok_or("its token isn't bound to a pod")?;
                if bound.name != claims.pod {
                    return Err(format!("it says it is pod `{}`, and is `{}`", claims.pod, bound.name));
                }
                self.bound_pod(namespace, &account.name, bound)?
            }
            Caller::Certificate(_) => self.running_pod(namespace, claims.pod, account)?,
        };
        if claims.node.is_some_and(|said| said != pod.node) {
            return Err(format!("it says it is on another node than `{}`", pod.node));
        }
        match claims.role {
            Role::NodeProxy if self.is_trusted(namespace, account) => Ok(()),
            Role::NodeProxy => Err(format!("`{namespace}/{account}` is not among the trusted node accounts")),
            Role::Waypoint if pod.gateway.is_empty() => Err("its pod belongs to no Gateway".to_owned()),
            Role::Waypoint if claims.gateway.is_some_and(|said| said != pod.gateway) => {
                Err(format!("it says it is of another Gateway than `{}`", pod.gateway))
            }
            Role::Waypoint => Ok(()),
        }
    }

    fn is_trusted(&self, namespace: &str, name: &str) -> bool {
        let account = ServiceAccountName { namespace: namespace.to_owned(), name: name.to_owned() };
        self.settings.trusted_node_accounts.contains(&account)
    }
}

impl Authorize for Authorizer {
    fn discovery<'a>(&'a self, peer: &'a Peer, node: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(async move {
            let caller = self.caller(peer).await?;
            self.discovery(&caller, node).map_err(Denied::new)
        })
    }

    fn certificate<'a>(
        &'a self,
        peer: &'a Peer,
        impersonated: Option<&'a SpiffeId>,
    ) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        Box::pin(async move {
            let caller = self.caller(peer).await?;
            match impersonated {
                Some(identity) => {
                    self.impersonation(&caller, identity).map_err(Denied::new)?;
                    Ok(identity.clone())
                }
                None => caller.identity(&self.settings.trust_domain).map_err(Denied::unauthenticated),
            }
        })
    }
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("settings", &self.settings).finish_non_exhaustive()
    }
}

// === impl Caller ===

impl Caller {
    /// Its namespace and service account.
    fn account(&self) -> (&str, &str) {
        match self {
            Self::Token(account) => (&account.namespace, &account.name),
            Self::Certificate(identity) => (identity.namespace(), identity.service_account()),
        }
    }

    fn identity(&self, trust_domain: &str) -> Result<SpiffeId, String> {
        match self {
            Self::Token(account) => {
                SpiffeId::new(trust_domain, &account.namespace, &account.name).map_err(|error| error.to_string())
            }
            Self::Certificate(identity) => Ok(identity.clone()),
        }
    }
}

// === impl ServiceAccountName ===

impl FromStr for ServiceAccountName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is not `<namespace>/<service account>`")),
        }
    }
}
