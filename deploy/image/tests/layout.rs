//! The layout as those who read it see it: every digest and size is right, the program in the layer is the one that was put
//! in, and it runs without anything else around it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ambit_image::{Contents, write};
use serde_json::Value;
use sha2::{Digest, Sha256};

const SOURCE: &str = "fn main() { println!(\"{}\", std::env::args().count()); }";

/// A small program, static or not.
fn program(folder: &Path, is_static: bool) -> PathBuf {
    let (source, out) = (folder.join("small.rs"), folder.join(if is_static { "static" } else { "dynamic" }));
    fs::write(&source, SOURCE).expect("a file");
    let linked = if is_static { "target-feature=+crt-static" } else { "target-feature=-crt-static" };
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let output = rustc.args(["-C", linked, "-o"]).args([&out, &source]).output().expect("rustc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().expect("a digest");
    let bytes = fs::read(layout.join("blobs").join(digest.replace(':', "/"))).expect("the blob is there");
    let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, format!("sha256:{hex}"));
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn the_layout_holds_the_program_and_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path(), true);
    let certificates = folder.path().join("certificates");
    fs::write(&certificates, "PEM").expect("a file");
    let contents = Contents { program: &program, certificates: Some(&certificates), name: "ambit:1", version: "1" };
    let layout = folder.path().join("layout");
    let digest = write(&contents, &layout).expect("it can be written");

    assert_eq!(json(&fs::read(layout.join("oci-layout")).expect("a file"))["imageLayoutVersion"], "1.0.0");
    let index = json(&fs::read(layout.join("index.json")).expect("a file"));
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], digest.as_str());
    assert_eq!(described["annotations"]["org.opencontainers.image.ref.name"], "ambit:1");
    let manifest = json(&blob(&layout, described));
    let config = json(&blob(&layout, &manifest["config"]));
    let layer = blob(&layout, &manifest["layers"][0]);
    assert_eq!(
        config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"],
        "an unpacked layer is its own content"
    );
    assert_eq!(config["architecture"], described["platform"]["architecture"]);
    assert_eq!(config["config"]["User"], "1337:1337", "nobody runs as root unless told");
    let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("a folder").count();
    assert_eq!(blobs, 3, "and nothing else");

    let root = folder.path().join("root");
    tar::Archive::new(layer.as_slice()).unpack(&root).expect("it can be unpacked");
    let entry = config["config"]["Entrypoint"][0].as_str().expect("an entry point").trim_start_matches('/').to_owned();
    assert_eq!(fs::read(root.join(&entry)).expect("it is there"), fs::read(&program).expect("a file"));
    assert_eq!(fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).expect("a file"), "PEM");
    let output = Command::new(root.join(&entry)).arg("one").env_clear().output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n");

    let again = folder.path().join("again");
    assert_eq!(write(&contents, &again).expect("it can be written"), digest, "the same program makes the same image");
    assert!(write(&contents, &again).is_err(), "what is there isn't written over");
}

#[test]
fn a_program_that_needs_libraries_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dynamic = program(folder.path(), false);
    let text = folder.path().join("text");
    fs::write(&text, "#!/bin/sh\n").expect("a file");
    for (program, reason) in [(&dynamic, "crt-static"), (&text, "Linux")] {
        let contents = Contents { program, certificates: None, name: "x", version: "1" };
        let layout = folder.path().join("layout");
        let error = write(&contents, &layout).expect_err("it is refused");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!layout.exists(), "nothing is left");
    }
}
