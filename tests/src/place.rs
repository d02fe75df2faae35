//! A folder and a user to run the binary in and as.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// The user id of `nobody`.
const NOBODY: u32 = 65_534;

/// A folder of its own with a copy of the binary and of the example, and the user to run as.
#[derive(Debug)]
pub struct Place {
    folder: tempfile::TempDir,
    uid: Option<u32>,
}

/// Runs the test as the present user and, when that is root, as `nobody` too. Says loudly and skips when the kernel
/// doesn't let an ordinary user make a user namespace, except in CI, where that fails.
pub fn each_user(test: impl Fn(&Place)) {
    let mut places = vec![Place::new(None)];
    if is_root() {
        places.push(Place::new(Some(NOBODY)));
    }
    for place in places {
        if let Err(refusal) = place.can_make_namespaces() {
            assert!(env::var_os("CI").is_none(), "this machine can't run the whole-mesh tests: {refusal}");
            eprintln!("SKIPPED as uid {:?}: this machine can't run the whole-mesh tests: {refusal}", place.uid);
            continue;
        }
        eprintln!("as {}", place.user());
        test(&place);
    }
}

fn is_root() -> bool {
    // The owner of our own /proc entry is our effective user.
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

// === impl Place ===

impl Place {
    fn new(uid: Option<u32>) -> Self {
        let folder = tempfile::Builder::new().prefix("ambit-test-").tempdir().expect("a temporary folder");
        let binary = folder.path().join("ambit");
        fs::copy(built_binary(), &binary).expect("the binary can be copied");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("and made executable");
        for example in ["mlflow", "mlflow-oauth2"] {
            copy_folder(&workspace().join("examples").join(example), &folder.path().join(example));
        }
        fs::create_dir(folder.path().join("home")).expect("a home folder");
        if let Some(uid) = uid {
            own(folder.path(), uid);
        }
        Self { folder, uid }
    }

    /// Who runs it, for messages.
    pub fn user(&self) -> String {
        self.uid.map_or_else(|| "the present user".to_owned(), |uid| format!("uid {uid}"))
    }

    /// True if the binary runs as root.
    pub fn is_root(&self) -> bool {
        self.uid.is_none() && is_root()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that the user of this place may read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        self.write_bytes(name, text.as_bytes())
    }

    /// The same for what is no text.
    pub fn write_bytes(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("the folder can be made");
        }
        fs::write(&path, bytes).expect("the file can be written");
        if let Some(uid) = self.uid {
            own(&path, uid);
        }
        path
    }

    /// Copies a program here, where the user of this place may run it. One that is here already stays.
    pub fn install(&self, program: &Path) -> PathBuf {
        let path = self.path(&program.file_name().expect("a program has a name").to_string_lossy());
        // A running program can't be overwritten.
        if !path.exists() {
            fs::copy(program, &path).expect("the program can be copied");
            if let Some(uid) = self.uid {
                own(&path, uid);
            }
        }
        path
    }

    /// Copies a program here, so that any user may run it, and returns its path.
    pub fn program(&self, built: &str, name: &str) -> String {
        let copy = self.path(name);
        // A running program can't be overwritten.
        if !copy.exists() {
            fs::copy(built, &copy).expect("the program can be copied");
        }
        copy.display().to_string()
    }

    /// `ambit` with this place's user, home, state and runtime folders.
    pub fn ambit(&self) -> Command {
        let mut command = self.command(&self.path("ambit"));
        command.env("RUST_BACKTRACE", "1");
        command
    }

    /// Any program as this place's user.
    pub fn command(&self, program: &Path) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.path("home"));
        command.env("XDG_RUNTIME_DIR", self.path("home")).env("XDG_STATE_HOME", self.path("home"));
        command.current_dir(self.folder.path());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    fn can_make_namespaces(&self) -> Result<(), String> {
        let output = self.ambit().arg("check-host").output().map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

fn own(path: &Path, uid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("root may give files away");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("the folder can be read").flatten() {
            own(&entry.path(), uid);
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("the example is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("the file can be copied");
        }
    }
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

fn built_binary() -> PathBuf {
    let test = env::current_exe().expect("a running test has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
    let binary = folder.join("ambit");
    assert!(binary.exists(), "{} isn't built; run the tests by `cargo xtask test`", binary.display());
    binary
}
