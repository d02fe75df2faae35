//! The soak for as long as a test may take. It says nothing about memory; the long one does (`cargo xtask soak ztunnel`).

use std::{env, path::Path, process::Command};

/// Time enough for each policy to come and go twice, and for the CA to hand over.
const SECONDS: &str = "20";
/// A machine that runs other tests is slower than the proxies are; every policy stays for four seconds.
const GRACE_MS: &str = "1500";

#[test]
fn twenty_seconds_of_changes_bring_no_wrong_verdict_and_leave_nothing_open() {
    let bench = Path::new(env!("CARGO_BIN_EXE_ambit-bench-ztunnel"));
    let ambit = bench.with_file_name("ambit");
    assert!(ambit.exists(), "{} isn't built; run the tests by `cargo xtask test`", ambit.display());
    let host = Command::new(&ambit).arg("check-host").output().expect("it runs");
    if !host.status.success() {
        let refusal = String::from_utf8_lossy(&host.stderr);
        assert!(env::var_os("CI").is_none(), "this machine can't run pods: {refusal}");
        eprintln!("SKIPPED: this machine can't run pods: {refusal}");
        return;
    }
    let out = tempfile::tempdir().expect("a folder");
    let mut soak = Command::new(bench);
    soak.arg(out.path()).args(["soak", "--ambit"]).arg(&ambit).args(["--seconds", SECONDS, "--grace-ms", GRACE_MS]);
    let output = soak.output().expect("it runs");
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{wrong}");
    let report = std::fs::read(out.path().join("ztunnel.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["generations"], 20, "{report:#}");
    assert!(report["rotations"].as_u64() >= Some(2), "{report:#}");
    assert!(report["seen"]["cut"].as_u64() > Some(0), "no connection was ever cut: {report:#}");
    println!("{said}");
}
