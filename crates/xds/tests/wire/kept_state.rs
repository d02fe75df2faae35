//! A restart while the control plane is away.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use ambit_xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, client::Options};
use tokio::time::timeout;

use crate::support::{Control, PATIENCE, Pki, Proxy, addresses, options, policies, workload};

fn keeping(options: Options, path: &std::path::Path) -> Options {
    Options { state_file: Some(path.to_owned()), ..options }
}

/// A control plane that is away, and the state that a proxy kept of it: `a`, `b` and policy `n/p`.
async fn kept(pki: &Pki) -> (Control, PathBuf) {
    let mut control = Control::start(pki).await;
    let path = pki.path("state");
    let both = vec![workload("a", 1, "", None), workload("b", 2, "", None)];
    control.resources.apply(&[addresses(both, &[]), policies(&["n/p"])]);
    let proxy = Proxy::start(keeping(options(control.endpoint(pki)), &path));
    proxy.synced().await;
    proxy.stop().await;
    control.stop().await;
    (control, path)
}

#[tokio::test]
async fn a_proxy_that_restarts_alone_serves_by_what_it_knew() {
    let pki = Pki::new();
    let (mut control, path) = kept(&pki).await;
    assert_eq!(fs::metadata(&path).expect("it was written").permissions().mode() & 0o777, 0o600);

    let proxy = Proxy::start(keeping(options(control.endpoint(&pki)), &path));
    timeout(PATIENCE, proxy.handle.servable()).await.expect("in time").expect("it runs");
    let state = proxy.handle.state();
    assert!(state.restored.is_some() && !state.synced);
    let told = proxy.told.borrow().clone();
    assert_eq!((told.names(ADDRESS_TYPE), told.names(AUTHORIZATION_TYPE)), (vec!["a", "b"], vec!["n/p"]));
    assert_eq!(told.pushes.len(), 1, "as one, policies first");
    assert_eq!(told.pushes[0][0].type_url, AUTHORIZATION_TYPE);

    // The control plane comes back, and only says what is new.
    control.resources.apply(&[addresses(vec![workload("a", 9, "", None)], &["b"])]);
    control.resume().await;
    proxy.synced().await;
    assert!(proxy.handle.state().restored.is_none());
    let told = proxy.told.borrow().clone();
    assert_eq!(told.names(ADDRESS_TYPE), ["a"]);
    let sent = told.pushes[1..].iter().flatten().flat_map(|delta| &delta.resources);
    assert_eq!(sent.map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn a_damaged_or_foreign_file_is_passed_over_whole() {
    let pki = Pki::new();
    let (mut control, path) = kept(&pki).await;
    let good = fs::read(&path).expect("it was written");
    let damaged = {
        let mut bytes = good.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let mut later = good.clone();
    later[8] += 1;
    for (what, bytes) in
        [("damaged", damaged), ("cut", good[..good.len() / 2].to_vec()), ("later", later), ("foreign", b"x".to_vec())]
    {
        fs::write(&path, &bytes).expect("ours");
        let proxy = Proxy::start(keeping(options(control.endpoint(&pki)), &path));
        // It comes as far as trying to connect, with nothing in force.
        proxy.until_state("trying", |state| state.failure.is_some()).await;
        assert!(proxy.told.borrow().pushes.is_empty(), "{what}");
        assert!(proxy.handle.state().restored.is_none(), "{what}");
        proxy.stop().await;
    }
    // Another cluster's.
    fs::write(&path, &good).expect("ours");
    let mut elsewhere = options(control.endpoint(&pki));
    elsewhere.node.cluster_id = "c2".into();
    let proxy = Proxy::start(keeping(elsewhere, &path));
    proxy.until_state("trying", |state| state.failure.is_some()).await;
    assert!(proxy.told.borrow().pushes.is_empty());
    proxy.stop().await;

    // And with a control plane it starts as usual, and the file is good again.
    fs::write(&path, b"x").expect("ours");
    control.resume().await;
    let proxy = Proxy::start(keeping(options(control.endpoint(&pki)), &path));
    proxy.synced().await;
    assert_eq!(proxy.told.borrow().names(ADDRESS_TYPE), ["a", "b"]);
    proxy.stop().await;
    assert_eq!(fs::read(&path).expect("written again").len(), good.len());
}

#[tokio::test]
async fn what_was_refused_is_refused_again() {
    let pki = Pki::new();
    let mut control = Control::start(&pki).await;
    let path = pki.path("state");
    control.resources.apply(&[addresses(vec![workload("a", 1, "", None), workload("bad", 2, "", None)], &[])]);
    let proxy = Proxy::start(keeping(options(control.endpoint(&pki)), &path));
    proxy.refuse.lock().expect("no panic").insert("bad".into());
    proxy.until("told", |told| told.names(ADDRESS_TYPE) == ["a"]).await;
    proxy.until_state("answered", |state| state.connected).await;
    proxy.stop().await;
    control.stop().await;

    let proxy = Proxy::start(keeping(options(control.endpoint(&pki)), &path));
    let told = proxy.until("restored", |told| !told.pushes.is_empty()).await;
    let names: Vec<_> = told.pushes[0].iter().flat_map(|delta| &delta.resources).map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a", "bad"], "the proxy sees it and closes what it governs");
}

#[tokio::test]
async fn a_change_is_written_while_the_proxy_runs() {
    let pki = Pki::new();
    let control = Control::start(&pki).await;
    let path = pki.path("state");
    control.resources.apply(&[addresses(vec![workload("a", 1, "", None)], &[])]);
    let proxy = Proxy::start(keeping(options(control.endpoint(&pki)), &path));
    proxy.synced().await;
    assert!(!path.exists(), "not at once: changes come in bursts");
    let written = async {
        while !path.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, written).await.expect("written after a quiet moment");
}
