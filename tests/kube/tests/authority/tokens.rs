//! 6.1 to 6.3 with tokens that the API server issued: certificates over gRPC and TLS, by the client that proxies use.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_control_plane::authority::{Authority, Settings, start};
use ambit_identity::{CertificateRequest, CertificateStore, SpiffeId, SystemClock, peer_identity};
use ambit_xds::{
    Endpoint, Roots as Trusted, Token,
    ca::{CaClient, CaClientError, CaOptions},
    discovery::Node,
    server::{Authorize as _, Peer, Server},
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use data_encoding::BASE64URL_NOPAD;
use rustls_pki_types::{PrivateSec1KeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, eventually};

const NOT_KNOWN: &str = "request authenticate failure";
const NOT_ALLOWED: &str = "request impersonation authentication failure";

/// A running CA server.
struct Service {
    address: SocketAddr,
    authority: Authority,
    _stop: tokio_util::sync::DropGuard,
}

pub async fn only_what_is_due_is_signed(cluster: &Cluster) {
    populate(cluster);
    let service = serve(cluster).await;
    let ztunnel = cluster.token("istio-system", "ztunnel", "ztunnel-x", "istio-ca");

    let issued = service.ask(&ztunnel, "app/web").await.expect("a pod on its node");
    assert_eq!(peer_identity(&issued.chain), Some(id("app/web")));

    let web = cluster.token("app", "web", "web-1", "istio-ca");
    let other_audience = cluster.token("istio-system", "ztunnel", "ztunnel-x", "vault");
    let unbound = cluster.run(&["create", "token", "ztunnel", "-n", "istio-system", "--audience=istio-ca"]);
    let namesake = cluster.token("app", "ztunnel", "fake-1", "istio-ca");
    let expired = expired(cluster, &ztunnel);
    let tampered = format!("{}A", &ztunnel[..ztunnel.len() - 1]);
    let cases = [
        ("another audience", &*other_audience, "app/web", NOT_KNOWN),
        ("an expired token", &expired, "app/web", NOT_KNOWN),
        ("a changed token", &tampered, "app/web", NOT_KNOWN),
        ("no JWT", "garbage", "app/web", NOT_KNOWN),
        ("no token", "", "app/web", NOT_KNOWN),
        ("a token of no pod", unbound.trim(), "app/web", NOT_ALLOWED),
        ("a workload's token", &web, "app/far", NOT_ALLOWED),
        ("a workload's token for itself", &web, "app/web", NOT_ALLOWED),
        ("a namesake of another namespace", &namesake, "app/web", NOT_ALLOWED),
        ("a pod of another node", &ztunnel, "app/far", NOT_ALLOWED),
        ("nobody's identity", &ztunnel, "app/nobody", NOT_ALLOWED),
        ("another namespace's account", &ztunnel, "istio-system/web", NOT_ALLOWED),
    ];
    for (what, token, identity, answer) in cases {
        match service.ask(token, identity).await {
            Err(CaClientError::Unauthenticated { reason, .. }) => assert_eq!(reason, answer, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    // Without impersonation everyone gets what its token says, and nothing else.
    let own = CaClient::new(CaOptions { impersonate: false, ..service.options(&web) });
    sign(&own, &id("app/web")).await.expect("its own");

    a_certificate_speaks_for_itself(&service, &web).await;
    eventually("whoever must trust the mesh finds its root", async || {
        let published = cluster.server.json(&["get", "configmap", "istio-ca-root-cert", "-n", "app", "-o", "json"]);
        published.is_ok_and(|found| found["data"]["root-cert.pem"] == service.authority.ca.root_pem())
    })
    .await;
    streams_are_for_proxies(&service, &ztunnel, &web).await;
    a_pod_that_is_gone_gets_nothing(cluster, &ztunnel).await;
}

fn populate(cluster: &Cluster) {
    for namespace in ["istio-system", "app"] {
        cluster.run(&["create", "namespace", namespace]);
    }
    for node in ["n1", "n2"] {
        cluster.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } }));
    }
    let pods = [
        ("istio-system", "ztunnel-x", "ztunnel", "n1"),
        ("app", "fake-1", "ztunnel", "n1"),
        ("app", "web-1", "web", "n1"),
        ("app", "far-1", "far", "n2"),
    ];
    for (namespace, pod, account, node) in pods {
        cluster.run(&["create", "serviceaccount", account, "-n", namespace]);
        cluster.pod(namespace, pod, account, node);
    }
}

/// The CA with its own certificate, as `ambit control-plane` runs it.
async fn serve(cluster: &Cluster) -> Service {
    let settings = Settings {
        ca_folder: "/nonexistent".into(),
        server_names: vec!["127.0.0.1".into()],
        ..Settings::new("istio-system", "replica")
    };
    let stop = CancellationToken::new();
    let pods = Arc::new(cluster.pods());
    let authority = start(cluster.client.clone(), pods, &settings, stop.clone()).await.expect("a CA");
    let server = Server::new(Arc::clone(&authority.authorizer) as _)
        .with_tls(authority.certificate.mesh_config())
        .with_ca(Arc::clone(&authority.ca));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(server.serve(listener, stop.clone()));
    Service { address, authority, _stop: stop.drop_guard() }
}

impl Service {
    fn options(&self, token: &str) -> CaOptions {
        let address = format!("https://{}", self.address).parse().expect("an address");
        let token = if token.is_empty() { Token::None } else { Token::Literal(token.into()) };
        let endpoint = Endpoint { token, ..Endpoint::new(address, Trusted::Inline(self.authority.ca.root_pem())) };
        CaOptions::new(endpoint, "Kubernetes".into())
    }

    async fn ask(&self, token: &str, identity: &str) -> Result<ambit_identity::IssuedChain, CaClientError> {
        sign(&CaClient::new(self.options(token)), &id(identity)).await
    }
}

async fn sign(client: &CaClient, id: &SpiffeId) -> Result<ambit_identity::IssuedChain, CaClientError> {
    let request = CertificateRequest::new(id).expect("a request");
    let issued = client.sign(id, request.pem().to_owned()).await?;
    request.check(&issued, &SystemClock).expect("it answers the request");
    Ok(issued)
}

/// Whoever has a certificate renews it without a token; it doesn't make it a node proxy.
async fn a_certificate_speaks_for_itself(service: &Service, web: &str) {
    let own = CaClient::new(CaOptions { impersonate: false, ..service.options(web) });
    let store = CertificateStore::new(Arc::new(own), Arc::new(SystemClock));
    let certificate = store.get(&id("app/web")).await.expect("its own");
    let mut by_certificate = CaOptions { impersonate: false, ..service.options("") };
    by_certificate.endpoint.client_certificate =
        Some(Arc::clone(&certificate.client_config(&[]).client_auth_cert_resolver));
    sign(&CaClient::new(by_certificate.clone()), &id("app/web")).await.expect("renewed");
    by_certificate.impersonate = true;
    let refused = sign(&CaClient::new(by_certificate), &id("app/web")).await;
    assert!(
        matches!(&refused, Err(CaClientError::Unauthenticated { reason, .. }) if reason == NOT_ALLOWED),
        "{refused:?}"
    );
}

async fn streams_are_for_proxies(service: &Service, ztunnel: &str, web: &str) {
    let ask = async |token: &str, node: &str| {
        let bearer = format!("Bearer {token}");
        let peer = Peer::new(service.address, None, &[("authorization", &bearer)]);
        service.authority.authorizer.discovery(&peer, &Node { id: node.into(), ..Node::default() }).await
    };
    let node_proxy = "ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local";
    ask(ztunnel, node_proxy).await.expect("a node proxy");
    ask(web, node_proxy).await.expect_err("somebody else's name");
    ask(web, "ztunnel~10.0.0.2~web-1.app~app.svc.cluster.local").await.expect_err("a workload is no node proxy");
    ask(web, "waypoint~10.0.0.2~web-1.app~app.svc.cluster.local").await.expect_err("nor a waypoint");
    ask("garbage", node_proxy).await.expect_err("nobody");
}

/// The token is bound to its pod: it ends with it, whatever time is left.
async fn a_pod_that_is_gone_gets_nothing(cluster: &Cluster, ztunnel: &str) {
    cluster.run(&["delete", "pod", "ztunnel-x", "-n", "istio-system", "--grace-period=0", "--force"]);
    let service = serve(cluster).await;
    eventually("the token ends with its pod", async || {
        let refused = service.ask(ztunnel, "app/web").await;
        matches!(refused, Err(CaClientError::Unauthenticated { reason, .. }) if reason == NOT_KNOWN)
    })
    .await;
}

/// The same token with its end in the past, properly signed with the API server's own key.
fn expired(cluster: &Cluster, token: &str) -> String {
    let state = cluster.server.kubeconfig();
    let key = state.parent().expect("a folder").join("tokens.key");
    let key = PrivateSec1KeyDer::from_pem_file(key).expect("the signing key");
    let key =
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_sec1_der()).expect("a key");
    let (header, rest) = token.split_once('.').expect("a JWT");
    let (payload, _) = rest.split_once('.').expect("a JWT");
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).expect("base64");
    let mut claims: Value = serde_json::from_slice(&payload).expect("JSON");
    let resign = |claims: &Value| {
        let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    };
    let hour = Duration::from_secs(3600).as_secs();
    for (name, by) in [("exp", hour), ("iat", hour), ("nbf", hour)] {
        claims[name] = json!(claims[name].as_u64().expect("a time") - by);
    }
    resign(&claims)
}

fn id(account: &str) -> SpiffeId {
    let (namespace, name) = account.split_once('/').expect("a namespace and a name");
    SpiffeId::new("cluster.local", namespace, name).expect("an identity")
}
