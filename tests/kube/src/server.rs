//! The API server as a process of its own.

use std::{
    error::Error,
    fmt, fs,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::Programs;

/// The longest that a start may take, on a loaded machine; mostly it is a tenth of that.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(120);
/// The longest that an end may take before the process is killed.
pub(crate) const ENDS_WITHIN: Duration = Duration::from_secs(15);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of the server's log an error shows, in bytes.
const LOG_SHOWN: usize = 4_000;

/// A running API server with ports, keys and data of its own. It ends when this is dropped, and even if the test that holds
/// it is killed: it ends with its standard input.
#[derive(Debug)]
pub struct KubeServer {
    programs: Programs,
    folder: tempfile::TempDir,
    address: String,
    child: Option<Child>,
}

/// Why there is no server.
#[derive(Debug)]
pub enum ServerError {
    /// Its folder or its process can't be made.
    Start(io::Error),
    /// It ended, or wasn't ready in time; with the end of its log.
    NotReady(String),
}

// === impl KubeServer ===

impl KubeServer {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// When it can't be started or isn't ready in two minutes.
    pub fn start(programs: &Programs) -> Result<Self, ServerError> {
        let folder = tempfile::Builder::new().prefix("ambit-kube-").tempdir().map_err(ServerError::Start)?;
        let mut server = Self { programs: programs.clone(), folder, address: "127.0.0.1:0".to_owned(), child: None };
        server.resume()?;
        Ok(server)
    }

    /// Ends the process as a crash would, and keeps the data. Connections break, new ones are refused.
    pub fn interrupt(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again with the same data, keys and address, after [`Self::interrupt`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn resume(&mut self) -> Result<(), ServerError> {
        self.interrupt();
        let state = self.folder.path().join("state");
        // What an earlier process left isn't news.
        match fs::remove_file(state.join("ready")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ServerError::Start(error)),
            _ => {}
        }
        let log = File::options().create(true).append(true).open(self.log()).map_err(ServerError::Start)?;
        let mut command = Command::new(&self.programs.server);
        command.arg("-state").arg(&state).args(["-address", &self.address, "-end-with-stdin"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().map_err(ServerError::Start)?);
        self.wait_until_ready(&state.join("ready"))
    }

    fn wait_until_ready(&mut self, ready: &Path) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Ok(url) = fs::read_to_string(ready) {
                url.trim().trim_start_matches("https://").clone_into(&mut self.address);
                return Ok(());
            }
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > deadline {
                self.interrupt();
                return Err(ServerError::NotReady(tail(&self.log())));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// `https://` and the address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The file with an administrator's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("state/kubeconfig")
    }

    /// The file with the certificate authority of the server, PEM.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("state/ca.crt")
    }

    /// What the server has to say.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The server's process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kubectl` as an administrator of this server, with nothing of the user's own settings.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.folder.path()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `kubectl` and gives what it printed.
    ///
    /// # Errors
    /// What it said on standard error, when it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.kubectl(arguments).output().map_err(|error| error.to_string())?;
        let Output { status, stdout, stderr } = output;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
    }

    /// Runs `kubectl` and reads the JSON that it printed.
    ///
    /// # Errors
    /// As [`Self::run`], or when that is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let text = self.run(arguments)?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }
}

impl Drop for KubeServer {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It ends with its standard input.
        drop(child.stdin.take());
        let deadline = Instant::now() + ENDS_WITHIN;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

// === impl ServerError ===

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => write!(formatter, "the API server can't be started: {error}"),
            Self::NotReady(log) => write!(formatter, "the API server isn't ready; the end of its log:\n{log}"),
        }
    }
}

impl Error for ServerError {}

/// The end of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_SHOWN)..]).into_owned()
}
