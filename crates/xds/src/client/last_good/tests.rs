use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

const SCOPE: &str = "https://istiod:15012 Kubernetes";

fn empty(path: &Path) -> LastGood {
    LastGood::new(path.to_owned(), SCOPE.into(), [AUTHORIZATION_TYPE.to_owned(), ADDRESS_TYPE.to_owned()])
}

fn delta(names: &[(&str, &str)], removed: &[&str]) -> DeltaResponse {
    let resource = |(name, version): &(&str, &str)| Resource {
        name: (*name).into(),
        version: (*version).into(),
        value: format!("{name}={version}").into_bytes(),
    };
    DeltaResponse {
        type_url: ADDRESS_TYPE.into(),
        resources: names.iter().map(resource).collect(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// A written file with two resources.
fn written() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state");
    let mut state = empty(&path);
    state.note(&delta(&[("a", "1"), ("b", "1"), ("c", "1")], &[]), |_| true);
    state.note(&delta(&[("b", "2")], &["c"]), |_| true);
    let (path, image) = state.image().expect("small");
    write(&path, &image).expect("writable");
    (dir, path)
}

#[test]
fn what_was_said_comes_back_in_order() {
    let (_dir, path) = written();
    let restored = empty(&path).load().expect("good").expect("there");
    assert_eq!(restored.deltas.len(), 2);
    assert_eq!(restored.deltas[0].type_url, AUTHORIZATION_TYPE);
    assert_eq!(restored.deltas[1], delta(&[("a", "1"), ("b", "2")], &[]));
    assert!(restored.written_at.elapsed().expect("in the past") < Duration::from_secs(60));
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("readable").count(), 1, "nothing is left beside");
}

#[test]
fn no_file_is_no_state() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(empty(&dir.path().join("state")).load().expect("no error").is_none());
}

#[test]
fn every_damaged_byte_and_every_cut_is_noticed() {
    let (_dir, path) = written();
    let good = fs::read(&path).expect("readable");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&path, &bad).expect("writable");
        assert!(empty(&path).load().is_err(), "byte {at} changed");
        fs::write(&path, &good[..at]).expect("writable");
        assert!(empty(&path).load().is_err(), "cut at {at}");
    }
    let mut longer = good.clone();
    longer.push(0);
    fs::write(&path, &longer).expect("writable");
    assert!(empty(&path).load().is_err(), "a byte more");
    fs::write(&path, &good).expect("writable");
    assert!(empty(&path).load().is_ok());
}

#[test]
fn files_of_others_are_told_apart() {
    let (_dir, path) = written();
    let mut later = fs::read(&path).expect("readable");
    later[MAGIC.len()] += 1;
    fs::write(&path, &later).expect("writable");
    assert!(matches!(empty(&path).load(), Err(StateError::Format { found: 2, .. })));

    fs::write(&path, b"#!/bin/sh").expect("writable");
    assert!(matches!(empty(&path).load(), Err(StateError::Foreign { .. })));

    let (_dir, path) = written();
    let mut other = empty(&path);
    other.scope = "https://elsewhere:15012 Kubernetes".into();
    assert!(matches!(other.load(), Err(StateError::OtherScope { .. })));
    let mut fewer = LastGood::new(path.clone(), SCOPE.into(), [ADDRESS_TYPE.to_owned()]);
    assert!(matches!(fewer.load(), Err(StateError::Damaged { .. })));
}

#[test]
fn files_that_others_could_have_written_are_not_read() {
    let (dir, path) = written();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).expect("ours");
    assert!(matches!(empty(&path).load(), Err(StateError::Exposed { .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    assert!(empty(&path).load().is_ok());

    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    assert!(matches!(empty(&link).load(), Err(StateError::Io { .. })), "a link may lead anywhere");
    assert!(matches!(empty(dir.path()).load(), Err(StateError::Exposed { .. })), "a folder");
}

#[test]
fn an_interrupted_write_harms_neither_the_old_state_nor_the_next_write() {
    let (dir, path) = written();
    fs::write(dir.path().join("state.new"), b"half").expect("writable");
    assert!(empty(&path).load().expect("the old one").is_some());
    let mut state = empty(&path);
    state.note(&delta(&[("d", "1")], &[]), |_| true);
    let (path, image) = state.image().expect("small");
    write(&path, &image).expect("writable");
    assert_eq!(empty(&path).load().expect("good").expect("there").deltas[1], delta(&[("d", "1")], &[]));
}
