//! `ambit ztunnel` as a cluster runs it: processes of their own, a node agent that hands them pods' namespaces, real
//! capture in real namespaces. Because namespaces have to be made before any thread, this is a program of its own
//! (`harness = false`); it runs as the calling user, and as `nobody` as well when that is root.
//!
//! Where the kernel refuses namespaces the tests are skipped, loudly; with `CI` set that's a failure.

mod control_plane;
mod diagnosis;
mod dump;
mod flood;
mod on_demand;
mod own_pod;
mod process;
mod refusal;
mod suite;
mod weather;
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use ambit_node::host::Role;

/// An ordinary user that every system has.
const NOBODY: u32 = 65_534;
/// What the suite ends with when the kernel refuses namespaces.
const REFUSED: u8 = 77;
/// The flag by which this program starts itself as another user.
const SUITE: &str = "--suite";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(SUITE) => as_node(PathBuf::from(&arguments[1]), arguments.get(2).cloned()),
        Some("--list") => ExitCode::SUCCESS,
        filter => for_each_user(filter),
    }
}

/// Splits, and runs the tests in the node process.
fn as_node(folder: PathBuf, filter: Option<String>) -> ExitCode {
    match ambit_node::launch() {
        Ok(Role::Host(host)) => host.run(),
        Ok(Role::Node(node)) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(suite::run(node, folder, filter)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(REFUSED)
        }
    }
}

fn for_each_user(filter: Option<&str>) -> ExitCode {
    let own = rustix::process::geteuid().as_raw();
    let users = if own == 0 { vec![0, NOBODY] } else { vec![own] };
    let mut failed = false;
    for uid in users {
        println!("\n== as user {uid}");
        match as_user(uid, filter) {
            Ok(Some(0)) => {}
            Ok(Some(code)) if code == i32::from(REFUSED) && std::env::var_os("CI").is_none() => {
                println!("SKIPPED: the kernel refuses namespaces to user {uid}");
            }
            Ok(code) => {
                println!("FAILED: the suite ended with {code:?}");
                failed = true;
            }
            Err(error) => {
                println!("FAILED: {error}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the suite in a folder of that user's, from programs that the user can read.
fn as_user(uid: u32, filter: Option<&str>) -> std::io::Result<Option<i32>> {
    let folder = tempfile::Builder::new().prefix("ambit-ztunnel-").tempdir_in("/tmp")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let program = folder.path().join("tests");
    fs::copy("/proc/self/exe", &program)?;
    fs::copy(env!("CARGO_BIN_EXE_ambit"), folder.path().join("ambit"))?;
    let own = folder.path().join("own");
    fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(uid), Some(uid))?;
    let mut command = Command::new(&program);
    command.arg(SUITE).arg(folder.path()).args(filter).current_dir("/");
    if uid != rustix::process::geteuid().as_raw() {
        command.uid(uid).gid(uid);
    }
    Ok(command.status()?.code())
}
