//! Who the API server says a token's bearer is.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

const ACCOUNTS_GROUP: &str = "system:serviceaccounts";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// A service account, by its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pod that the token is bound to.
    pub pod: Option<BoundPod>,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// Its name; its namespace is the account's.
    pub name: String,
    /// Its unique ID.
    pub uid: String,
    /// Its node, if the API server says it.
    pub node: Option<String>,
}

// === impl Account ===

impl Account {
    /// Reads a review for one of `audiences`.
    ///
    /// # Errors
    /// Says why the token is none, for the operator.
    pub fn reviewed(status: &TokenReviewStatus, audiences: &[String]) -> Result<Self, String> {
        if status.authenticated != Some(true) {
            let reason = status.error.as_deref().unwrap_or("no reason given");
            return Err(format!("the API server doesn't accept the token: {}", cut(reason)));
        }
        // An API server that doesn't know of audiences names none; then the token may be meant for anybody.
        let meant = status.audiences.iter().flatten().any(|audience| audiences.contains(audience));
        if !meant {
            return Err(format!("the token isn't for {audiences:?}"));
        }
        let user = status.user.as_ref().ok_or("the review names nobody")?;
        Self::named(user)
    }

    fn named(user: &UserInfo) -> Result<Self, String> {
        let user_name = user.username.as_deref().unwrap_or_default();
        let account = user_name.strip_prefix(ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
        let grouped = user.groups.iter().flatten().any(|group| group == ACCOUNTS_GROUP);
        let (namespace, name) = match account {
            Some((namespace, name)) if grouped && is_name(namespace) && is_name(name) => (namespace, name),
            _ => return Err(format!("`{}` is no service account", cut(user_name))),
        };
        let extra = |key| one(user.extra.as_ref(), key);
        let pod = match (extra(POD_NAME), extra(POD_UID)) {
            (Some(name), Some(uid)) => Some(BoundPod { name, uid, node: extra(NODE_NAME) }),
            _ => None,
        };
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), pod })
    }
}

/// The value of an extra; nothing unless there is exactly one that isn't empty.
fn one(extras: Option<&BTreeMap<String, Vec<String>>>, key: &str) -> Option<String> {
    match extras?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed)
}

fn cut(text: &str) -> String {
    text.chars().take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<Account, String> {
        let user = UserInfo {
            username: Some("system:serviceaccount:istio-system:ztunnel".into()),
            groups: Some(vec!["system:serviceaccounts".into(), "system:authenticated".into()]),
            extra: Some(BTreeMap::from([
                (POD_NAME.into(), vec!["ztunnel-x".into()]),
                (POD_UID.into(), vec!["u-1".into()]),
            ])),
            ..UserInfo::default()
        };
        let mut status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["istio-ca".into()]),
            user: Some(user),
            error: None,
        };
        change(&mut status);
        Account::reviewed(&status, &["istio-ca".into()])
    }

    fn user(status: &mut TokenReviewStatus) -> &mut UserInfo {
        status.user.as_mut().expect("there is one")
    }

    #[test]
    fn a_review_names_account_and_pod() {
        let account = review(|_| {}).expect("accepted");
        let pod = BoundPod { name: "ztunnel-x".into(), uid: "u-1".into(), node: None };
        assert_eq!(account, Account { namespace: "istio-system".into(), name: "ztunnel".into(), pod: Some(pod) });
        let on_node = review(|status| {
            let extra = user(status).extra.as_mut().expect("there are some");
            extra.insert(NODE_NAME.into(), vec!["n1".into()]);
        });
        assert_eq!(on_node.expect("accepted").pod.and_then(|pod| pod.node).as_deref(), Some("n1"));
    }

    #[test]
    fn whoever_is_no_service_account_for_us_is_refused() {
        type Change = fn(&mut TokenReviewStatus);
        let cases: [(&str, Change); 11] = [
            ("doesn't accept", |status| status.authenticated = Some(false)),
            ("doesn't accept", |status| status.authenticated = None),
            ("isn't for", |status| status.audiences = Some(vec!["other".into()])),
            ("isn't for", |status| status.audiences = None),
            ("names nobody", |status| status.user = None),
            ("no service account", |status| user(status).username = Some("alice".into())),
            ("no service account", |status| user(status).username = Some("system:serviceaccount:a".into())),
            ("no service account", |status| user(status).username = Some("system:serviceaccount::b".into())),
            ("no service account", |status| user(status).username = Some("system:serviceaccount:a:b:c".into())),
            ("no service account", |status| user(status).username = Some("system:serviceaccount:a:b/../c".into())),
            ("no service account", |status| user(status).groups = Some(vec!["system:authenticated".into()])),
        ];
        for (reason, change) in cases {
            let error = review(change).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn half_a_pod_is_none() {
        for key in [POD_NAME, POD_UID] {
            for values in [vec![], vec![String::new()], vec!["a".into(), "b".into()]] {
                let account = review(|status| {
                    user(status).extra.as_mut().expect("there are some").insert(key.into(), values);
                });
                assert_eq!(account.expect("accepted").pod, None);
            }
        }
    }
}
