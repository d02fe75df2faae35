//! Real namespaces, real traffic. Because the split into two processes must come before any thread, this is a program of
//! its own (`harness = false`): it runs its suite as the calling user, and as `nobody` as well when that is root.
//!
//! Where the kernel refuses namespaces the tests are skipped, loudly; with `CI` set that's a failure.

mod in_pod;
mod outside;
mod ports;
mod suite;
mod zds;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use ambit_node::host::Role;

/// An ordinary user that every system has.
const NOBODY: u32 = 65_534;
/// What the suite ends with when the kernel refuses namespaces.
const REFUSED: u8 = 77;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let own_name = arguments.first().is_some_and(|name| name == "ambit");
    match arguments.get(1).map(String::as_str) {
        Some(command) if own_name => in_pod::run(command, &arguments[2..]),
        Some("--suite") => as_node(suite::run),
        Some("--serve") => as_node(|node| outside::serve(node, PathBuf::from(&arguments[2]))),
        Some("--hang") => as_node(outside::hang),
        Some("--run") => outside::run_client(Path::new(&arguments[2]), &arguments[3..]),
        Some("--forward") => outside::forward_client(Path::new(&arguments[2])),
        Some("--list") => ExitCode::SUCCESS,
        _ => for_each_user(),
    }
}

/// Splits, and runs `work` in the node process.
fn as_node<F>(work: impl FnOnce(ambit_node::NodeProcess) -> F) -> ExitCode
where
    F: Future<Output = ExitCode>,
{
    match ambit_node::launch() {
        Ok(Role::Host(host)) => host.run(),
        Ok(Role::Node(node)) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work(node)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(REFUSED)
        }
    }
}

fn for_each_user() -> ExitCode {
    let own = rustix::process::geteuid().as_raw();
    let users = if own == 0 { vec![0, NOBODY] } else { vec![own] };
    let mut failed = false;
    for uid in users {
        println!("\n== as user {uid}");
        match as_user(uid) {
            Ok(Outcome::Passed) => {}
            Ok(Outcome::Refused) if std::env::var_os("CI").is_none() => {
                println!("SKIPPED: the kernel refuses namespaces to user {uid}");
            }
            Ok(Outcome::Refused) => {
                println!("FAILED: the kernel refuses namespaces to user {uid}, and `CI` is set");
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

enum Outcome {
    Passed,
    Refused,
}

/// The program, copied to where that user can read it, and a folder of that user's.
pub(crate) struct Bench {
    pub(crate) program: PathBuf,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) uid: u32,
}

impl Bench {
    fn new(uid: u32) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("can't prepare: {error}");
        let folder = tempfile::Builder::new().prefix("ambit-node-").tempdir_in("/tmp").map_err(failed)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        let program = folder.path().join("tests");
        fs::copy("/proc/self/exe", &program).map_err(failed)?;
        let own = folder.path().join("own");
        fs::create_dir(&own).map_err(failed)?;
        std::os::unix::fs::chown(&own, Some(uid), Some(uid)).map_err(failed)?;
        Ok(Self { program, folder, uid })
    }

    pub(crate) fn own_folder(&self) -> PathBuf {
        self.folder.path().join("own")
    }

    /// The program, to be run as that user.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir("/").env_remove("XDG_RUNTIME_DIR").env("PATH", "/usr/bin:/bin");
        if self.uid != rustix::process::geteuid().as_raw() {
            command.uid(self.uid).gid(self.uid);
        }
        command
    }
}

fn as_user(uid: u32) -> Result<Outcome, String> {
    let bench = Bench::new(uid)?;
    // The suite reaches this listener through the host process.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    let status = bench
        .command(&["--suite"])
        .env("AMBIT_TEST_HOST_PORT", port.to_string())
        .status()
        .map_err(|error| error.to_string())?;
    match status.code() {
        Some(0) => {}
        Some(code) if code == i32::from(REFUSED) => return Ok(Outcome::Refused),
        _ => return Err(format!("the suite ended with {status}")),
    }
    outside::check(&bench)?;
    Ok(Outcome::Passed)
}
