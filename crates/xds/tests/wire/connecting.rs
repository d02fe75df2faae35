//! Who the server is, who we are, and what becomes of secrets that rotate.

use ambit_xds::{ADDRESS_TYPE, Endpoint, Roots, Token, client::Termination};

use crate::support::{Control, Pki, Proxy, SERVER_NAME, TOKEN, addresses, options, token_file, workload};

#[tokio::test]
async fn the_token_is_read_again_for_every_connection() {
    let pki = Pki::new();
    let mut control = Control::start(&pki).await;
    let (path, replace) = token_file(&pki);
    let endpoint = Endpoint { token: Token::File(path), ..control.endpoint(&pki) };
    let proxy = Proxy::start(options(endpoint));
    proxy.synced().await;

    // The old token is no longer good; the file still has it.
    *control.gate.token.lock().expect("no panic") = "second-token".into();
    control.stop().await;
    control.resume().await;
    control.resources.apply(&[addresses(vec![workload("a", 1, "", None)], &[])]);
    proxy
        .until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("Unauthenticated")))
        .await;
    assert!(proxy.told.borrow().names(ADDRESS_TYPE).is_empty());

    replace("second-token\n");
    proxy.until("told", |told| told.names(ADDRESS_TYPE) == ["a"]).await;
    let tokens: Vec<_> = control.gate.seen().into_iter().filter_map(|seen| seen.token).collect();
    assert_eq!(
        (tokens.first().map(String::as_str), tokens.last().map(String::as_str)),
        (Some(TOKEN), Some("second-token"))
    );
}

#[tokio::test]
async fn why_a_peer_was_refused_is_not_told_to_it() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    let endpoint = Endpoint { token: Token::Literal("wrong".into()), ..control.endpoint(&pki) };
    let proxy = Proxy::start(options(endpoint));
    proxy.until_state("refused", |state| state.failure.is_some()).await;
    let failure = proxy.handle.state().failure.expect("a reason");
    assert_eq!(failure, "Unauthenticated: authentication failure");
    assert!(!failure.contains("another token") && !failure.contains("wrong"));
    assert!(!proxy.handle.state().synced);
}

#[tokio::test]
async fn a_server_of_another_root_gets_nothing() {
    let (pki, other) = (Pki::new(), Pki::new());
    let control = Control::start(&pki).await;
    let endpoint = Endpoint { roots: Roots::Inline(other.root_pem()), ..control.endpoint(&pki) };
    let proxy = Proxy::start(options(endpoint));
    proxy.until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("no TLS"))).await;
    assert!(control.gate.seen().is_empty(), "not even the token");
    assert!(proxy.handle.stats().terminations(Termination::ConnectionError) > 0);
}

#[tokio::test]
async fn the_roots_file_is_read_again_for_every_connection() {
    let (pki, other) = (Pki::new(), Pki::new());
    let control = Control::start(&pki).await;
    let path = pki.replace("roots", &other.root_pem());
    let proxy = Proxy::start(options(Endpoint { roots: Roots::File(path), ..control.endpoint(&pki) }));
    proxy.until_state("refused", |state| state.failure.is_some()).await;
    pki.replace("roots", &format!("{}{}", other.root_pem(), pki.root_pem()));
    proxy.synced().await;
}

#[tokio::test]
async fn a_missing_root_or_token_is_waited_for() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    let endpoint = Endpoint {
        roots: Roots::File(pki.path("late-root")),
        token: Token::File(pki.path("late-token")),
        ..control.endpoint(&pki)
    };
    let proxy = Proxy::start(options(endpoint));
    proxy.until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("late-token"))).await;
    pki.replace("late-token", TOKEN);
    proxy.until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("late-root"))).await;
    pki.replace("late-root", &pki.root_pem());
    proxy.synced().await;
}

#[tokio::test]
async fn the_certificate_may_have_the_alternative_name() {
    let pki = Pki::new();
    let control = Control::start_with(pki.server(&[SERVER_NAME], false), None).await;
    let refused = Proxy::start(options(control.endpoint(&pki)));
    refused.until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("no TLS"))).await;
    let wrong = Endpoint { alternative_server_name: Some("other.svc".into()), ..control.endpoint(&pki) };
    let wrong = Proxy::start(options(wrong));
    wrong.until_state("refused", |state| state.failure.is_some()).await;
    let right = Endpoint { alternative_server_name: Some(SERVER_NAME.into()), ..control.endpoint(&pki) };
    Proxy::start(options(right)).synced().await;
    // And still none of a stranger's.
    let stranger = Pki::new();
    let endpoint = Endpoint {
        alternative_server_name: Some(SERVER_NAME.into()),
        roots: Roots::Inline(stranger.root_pem()),
        ..control.endpoint(&pki)
    };
    let proxy = Proxy::start(options(endpoint));
    proxy.until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("no TLS"))).await;
}

#[tokio::test]
async fn a_certificate_of_our_own_says_who_we_are() {
    let pki = Pki::new();
    let control = Control::start_with(pki.server(&["127.0.0.1"], true), None).await;
    let identity = ambit_testing::identity("istio-system", "ztunnel");
    let endpoint = Endpoint {
        token: Token::None,
        roots: Roots::File(pki.root_file()),
        client_certificate: Some(pki.client(&identity)),
        ..control.endpoint(&pki)
    };
    Proxy::start(options(endpoint)).synced().await;
    assert_eq!(control.gate.seen()[0].identity, Some(identity));
    assert_eq!(control.gate.seen()[0].token, None);

    let without = Proxy::start(options(Endpoint { client_certificate: None, ..control.endpoint(&pki) }));
    without.until_state("refused", |state| state.failure.is_some()).await;
    assert_eq!(control.gate.seen().len(), 1);
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let pki = Pki::new();
    let mut control = Control::start(&pki).await;
    control.stop().await;
    let proxy = Proxy::start(options(control.endpoint(&pki)));
    proxy
        .until_state("refused", |state| state.failure.as_ref().is_some_and(|text| text.contains("can't connect")))
        .await;
    control.resume().await;
    proxy.synced().await;
}
