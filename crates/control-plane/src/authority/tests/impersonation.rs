//! 6.2 and 6.3: who is known, and which identities a node proxy gets.

use ambit_xds::server::{Authorize, Denied};

use super::*;

const WEB: &str = "spiffe://cluster.local/ns/app/sa/web";

async fn ask(world: &World, impersonated: Option<&str>) -> Result<SpiffeId, Denied> {
    let identity = impersonated.map(id);
    world.authorizer().certificate(&world.peer(), identity.as_ref()).await
}

#[tokio::test]
async fn a_node_proxy_gets_the_identity_of_a_pod_on_its_node() {
    assert_eq!(ask(&World::new(), Some(WEB)).await, Ok(id(WEB)));
    // With the node in the token, as newer API servers have it.
    let mut world = World::new();
    world.extra.push(("node-name", "n1"));
    assert_eq!(ask(&world, Some(WEB)).await, Ok(id(WEB)));
}

/// Each condition of 6.3 and each of ours: everything else holds, and this alone refuses.
#[tokio::test]
async fn each_condition_alone_refuses() {
    type Change = fn(&mut World);
    let cases: [(&str, &str, Change); 20] = [
        ("isn't bound to a pod", WEB, |world| world.extra.clear()),
        ("isn't bound to a pod", WEB, |world| world.extra.retain(|(key, _)| *key != "pod-name")),
        ("isn't bound to a pod", WEB, |world| world.extra.retain(|(key, _)| *key != "pod-uid")),
        ("with a token", WEB, |world| {
            world.token = None;
            world.certificate = Some(id("spiffe://cluster.local/ns/istio-system/sa/ztunnel"));
        }),
        ("trusted node accounts", WEB, |world| world.trusted.clear()),
        ("trusted node accounts", WEB, |world| world.trusted = vec!["other/ztunnel", "istio-system/other"]),
        ("trust domain", "spiffe://elsewhere/ns/app/sa/web", |_| {}),
        ("no pod `istio-system/ztunnel-x`", WEB, |world| world.pods.0.clear()),
        ("earlier pod", WEB, |world| world.pod("istio-system", "ztunnel-x").uid = "u-other".into()),
        ("another service account", WEB, |world| {
            world.pod("istio-system", "ztunnel-x").service_account = "other".into();
        }),
        ("has ended", WEB, |world| world.pod("istio-system", "ztunnel-x").runs = false),
        ("on no node", WEB, |world| world.pod("istio-system", "ztunnel-x").node.clear()),
        ("another node", WEB, |world| world.extra.push(("node-name", "n2"))),
        ("in the mesh", WEB, |world| world.pod("istio-system", "ztunnel-x").node = "n2".into()),
        ("in the mesh", WEB, |world| world.pod("app", "web-1").node = "n2".into()),
        ("in the mesh", WEB, |world| world.pod("app", "web-1").runs = false),
        ("in the mesh", WEB, |world| world.pod("app", "web-1").enrolled = false),
        ("in the mesh", WEB, |world| world.pod("app", "web-1").service_account = "other".into()),
        ("in the mesh", "spiffe://cluster.local/ns/other/sa/web", |_| {}),
        ("in the mesh", "spiffe://cluster.local/ns/app/sa/other", |_| {}),
    ];
    for (reason, identity, change) in cases {
        let mut world = World::new();
        change(&mut world);
        let denied = ask(&world, Some(identity)).await.expect_err(reason);
        assert!(denied.reason.contains(reason), "{reason}: {denied}");
        assert!(!denied.unauthenticated, "who it is was known: {denied}");
    }
}

#[tokio::test]
async fn whoever_asks_for_no_other_gets_its_own() {
    let ztunnel = id("spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    assert_eq!(ask(&World::new(), None).await, Ok(ztunnel.clone()));
    let renewing = World { token: None, certificate: Some(ztunnel.clone()), ..World::new() };
    assert_eq!(ask(&renewing, None).await, Ok(ztunnel));
}

/// The token comes first, and a bad one leaves the certificate to count.
#[tokio::test]
async fn the_first_authenticator_that_holds_counts() {
    let other = id("spiffe://cluster.local/ns/app/sa/web");
    let both = World { certificate: Some(other.clone()), ..World::new() };
    assert_eq!(ask(&both, None).await, Ok(id("spiffe://cluster.local/ns/istio-system/sa/ztunnel")));
    let bad_token = World { token: Some("bad"), ..both.clone() };
    assert_eq!(ask(&bad_token, None).await, Ok(other));
    // So is a token of another cluster: nobody here can tell whose it is.
    let elsewhere = World { cluster: "remote", ..World::new() };
    assert!(ask(&elsewhere, None).await.expect_err("refused").unauthenticated);
    let unsaid = World { cluster: "", ..World::new() };
    ask(&unsaid, None).await.expect("it is the only cluster");
}

#[tokio::test]
async fn nobody_is_nobody_whatever_is_asked_for() {
    let foreign = Some(id("spiffe://elsewhere/ns/istio-system/sa/ztunnel"));
    for (token, certificate) in [(None, None), (Some("bad"), None), (None, foreign.clone()), (Some("bad"), foreign)] {
        let world = World { token, certificate, ..World::new() };
        for impersonated in [None, Some(WEB)] {
            let denied = ask(&world, impersonated).await.expect_err("refused");
            assert!(denied.unauthenticated, "{denied}");
            assert!(!denied.reason.contains("bad"), "no token in a log: {denied}");
        }
    }
}

#[test]
fn settings_are_read_as_istios() {
    let name: ServiceAccountName = " istio-system/ztunnel".parse().expect("a name");
    assert_eq!((&*name.namespace, &*name.name), ("istio-system", "ztunnel"));
    for bad in ["", "a", "/a", "a/", "a/b/c"] {
        bad.parse::<ServiceAccountName>().expect_err(bad);
    }
    assert_eq!(AuthorizationSettings::trust_domain_of("me@example.com"), "me.example.com");
}
