//! Certificates over the network.

use std::{sync::Arc, time::Duration};

use ambit_identity::{CertificateRequest, CertificateSource, CertificateStore, SourceError, SystemClock};
use ambit_testing::{TestMesh, identity};
use ambit_xds::{
    Endpoint, Roots, Token,
    ca::{CaClient, CaClientError, CaOptions},
};

use crate::support::{Control, Pki, SERVER_NAME, token_file};

async fn start(pki: &Pki) -> (TestMesh, Control) {
    let mesh = TestMesh::new();
    let tls = pki.server(&[SERVER_NAME, "127.0.0.1"], false);
    let control = Control::start_with(tls, Some(Arc::clone(&mesh.ca))).await;
    (mesh, control)
}

fn client(endpoint: Endpoint) -> CaClient {
    CaClient::new(CaOptions::new(endpoint, "c1".into()))
}

#[tokio::test]
async fn a_certificate_is_signed_for_the_identity_asked_for() {
    let pki = Pki::new();
    let (mesh, control) = start(&pki).await;
    let ca = client(control.endpoint(&pki));
    let request = CertificateRequest::new(&identity("a", "x")).expect("a request");
    let issued = ca.sign(request.identity(), request.pem().to_owned()).await.unwrap_or_else(|error| panic!("{error}"));
    request.check(&issued, &SystemClock).expect("it answers the request");
    assert_eq!((issued.chain.len(), issued.roots.len()), (1, 1));
    assert_eq!(ambit_identity::certificate_pem(&issued.roots[0]).trim(), mesh.ca.root_pem().trim());
    let seen = control.gate.seen();
    assert_eq!((seen[0].token.as_deref(), seen[0].cluster.as_deref()), (Some("first-token"), Some("c1")));
}

#[tokio::test]
async fn a_certificate_store_lives_on_it() {
    let pki = Pki::new();
    let (_mesh, control) = start(&pki).await;
    let store = CertificateStore::new(Arc::new(client(control.endpoint(&pki))), Arc::new(SystemClock));
    for name in ["x", "y", "z"] {
        let certificate = store.get(&identity("a", name)).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(*certificate.identity(), identity("a", name));
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let pki = Pki::new();
    let (_mesh, mut control) = start(&pki).await;
    let sign = async |ca: &CaClient, id| {
        let request = CertificateRequest::new(&id).expect("a request");
        ca.sign(&id, request.pem().to_owned()).await.expect_err("refused")
    };
    let good = control.endpoint(&pki);
    let wrong_token = client(Endpoint { token: Token::Literal("wrong".into()), ..good.clone() });
    let error = sign(&wrong_token, identity("a", "x")).await;
    assert!(
        matches!(&error, CaClientError::Unauthenticated { reason, .. } if reason == "request impersonation authentication failure"),
        "{error}"
    );
    assert!(matches!(SourceError::from(error), SourceError::Refused { .. }));

    let error = sign(&client(good.clone()), identity("secret", "x")).await;
    assert!(matches!(&error, CaClientError::Unauthenticated { reason, .. } if !reason.contains("node")), "{error}");

    let foreign = "spiffe://elsewhere/ns/a/sa/x".parse().expect("an identity");
    let error = sign(&client(good.clone()), foreign).await;
    assert!(matches!(&error, CaClientError::Refused { code, .. } if code == "InvalidArgument"), "{error}");

    let long = CaOptions { ttl: Duration::from_secs(91 * 24 * 3600), ..CaOptions::new(good.clone(), String::new()) };
    let error = sign(&CaClient::new(long), identity("a", "x")).await;
    assert!(matches!(&error, CaClientError::Refused { .. }), "{error}");

    let own = CaOptions { impersonate: false, ..CaOptions::new(good.clone(), String::new()) };
    let error = sign(&CaClient::new(own), identity("a", "x")).await;
    assert!(matches!(&error, CaClientError::Refused { .. } | CaClientError::Answer { .. }), "{error}");

    let error = client(good.clone()).sign(&identity("a", "x"), "not PEM".into()).await.expect_err("refused");
    assert!(matches!(&error, CaClientError::Refused { .. }), "{error}");

    let stranger = Pki::new();
    let error =
        sign(&client(Endpoint { roots: Roots::Inline(stranger.root_pem()), ..good.clone() }), identity("a", "x")).await;
    assert!(matches!(&error, CaClientError::Connect(_)), "{error}");

    control.stop().await;
    let error = sign(&client(good), identity("a", "x")).await;
    assert!(matches!(&error, CaClientError::Connect(_)), "{error}");
    assert!(matches!(SourceError::from(error), SourceError::Unreachable { .. }));
}

#[tokio::test]
async fn the_token_is_read_again_for_every_request_and_a_lost_connection_is_made_anew() {
    let pki = Pki::new();
    let (_mesh, mut control) = start(&pki).await;
    let (path, replace) = token_file(&pki);
    let ca = client(Endpoint { token: Token::File(path), ..control.endpoint(&pki) });
    let sign = async |ca: &CaClient| {
        let request = CertificateRequest::new(&identity("a", "x")).expect("a request");
        ca.certificate(request.identity(), request.pem().to_owned()).await
    };
    assert!(sign(&ca).await.is_ok());
    *control.gate.token.lock().expect("no panic") = "second-token".into();
    assert!(sign(&ca).await.is_err());
    replace("second-token");
    assert!(sign(&ca).await.is_ok(), "on the same connection");
    control.stop().await;
    assert!(sign(&ca).await.is_err());
    control.resume().await;
    assert!(sign(&ca).await.is_ok(), "on a new one");
}

#[tokio::test]
async fn roots_that_were_replaced_count_from_the_next_request_on() {
    let pki = Pki::new();
    let (_mesh, mut control) = start(&pki).await;
    let path = pki.replace("ca-root", &pki.root_pem());
    let ca = client(Endpoint { roots: Roots::File(path), ..control.endpoint(&pki) });
    let sign = async |ca: &CaClient| {
        let request = CertificateRequest::new(&identity("a", "x")).expect("a request");
        ca.certificate(request.identity(), request.pem().to_owned()).await
    };
    assert!(sign(&ca).await.is_ok());
    // Roots that don't fit don't take the working connection away, but a new one needs them.
    let stranger = Pki::new();
    pki.replace("ca-root", &stranger.root_pem());
    assert!(sign(&ca).await.is_ok());
    control.stop().await;
    control.resume().await;
    assert!(sign(&ca).await.is_err());
    pki.replace("ca-root", &pki.root_pem());
    assert!(sign(&ca).await.is_ok());
}
