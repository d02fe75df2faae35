//! The demo's mesh: an `ambit up` of its own, its clients, and its decision records.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Check, example::Example};
use crate::command::{
    Failure,
    client::{Answer, Ask},
};

/// How long the mesh may take to say that it is ready. It should take well under a second.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a decision record may take to reach the access log.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// A running mesh with the example in it.
#[derive(Debug)]
pub struct Mesh {
    child: Child,
    program: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
    access_log: PathBuf,
    ready_line: String,
    output: Arc<Mutex<Vec<String>>>,
}

/// A client in a pod of the mesh, with one connection that it keeps open.
#[derive(Debug)]
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// A place in the access log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

// === impl Mesh ===

impl Mesh {
    /// Starts the mesh and waits until it and the server in it are ready.
    pub fn up(example: &Example, verbose: bool) -> Result<Self, Failure> {
        let program =
            std::env::current_exe().map_err(|error| Failure::new(format!("can't find this program: {error}")))?;
        let environment = vec![("XDG_RUNTIME_DIR", example.state()), ("XDG_STATE_HOME", example.state())];
        std::fs::create_dir(example.state())
            .map_err(|error| Failure::new(format!("can't make a state folder: {error}")))?;
        let mut command = Command::new(&program);
        command.arg("up").arg("-f").arg(example.resources()).arg("--access-log").arg(example.access_log());
        let mut child = command
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| Failure::new(format!("can't start `{}`: {error}", program.display())))?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let (sender, ready) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            let output = Arc::clone(&output);
            thread::spawn(move || follow(stdout, &output, &sender, verbose));
        }
        let access_log = example.access_log();
        let mut mesh = Self { child, program, environment, access_log, ready_line: String::new(), output };
        mesh.ready_line = ready
            .recv_timeout(READY_TIMEOUT)
            .map_err(|_| Failure::new("the mesh didn't get ready; see what it printed above"))?;
        Ok(mesh)
    }

    /// What the mesh said when it was ready.
    pub fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// Starts a client as `ambit run ARGUMENTS -- ambit client ADDRESS`.
    pub fn client(&self, run: &[&str], address: &str, http2: bool) -> Result<Client, Failure> {
        let mut command = self.ambit();
        command.arg("run").args(run).arg("--").arg(&self.program).args(["client", address]);
        if http2 {
            command.arg("--http2");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("can't start a client: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| Failure::new("the client has no standard output"))?;
        Ok(Client { child, stdin, stdout: BufReader::new(stdout) })
    }

    /// The mesh's pods as `ambit status -o json` tells them.
    pub fn pods(&self) -> Result<Vec<Value>, Failure> {
        let output = self
            .ambit()
            .args(["status", "--output", "json"])
            .output()
            .map_err(|error| Failure::new(format!("can't ask for the status: {error}")))?;
        let status: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
            Failure::new(format!("`ambit status` isn't JSON: {error}: {}", String::from_utf8_lossy(&output.stderr)))
        })?;
        Ok(status["pods"].as_array().cloned().unwrap_or_default())
    }

    /// Stops a pod by `ambit stop`.
    pub fn stop(&self, pod: &str) -> Result<(), Failure> {
        match self.ambit().args(["stop", pod]).output() {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(Failure::new(format!("can't stop `{pod}`: {other:?}"))),
        }
    }

    /// How many requests the server in MLflow's place has printed.
    pub fn requests_served(&self) -> usize {
        let lines = self.output.lock().map(|lines| lines.clone()).unwrap_or_default();
        lines.iter().filter(|line| line.contains("/mlflow | ") && line.contains(" from ")).count()
    }

    /// The present end of the access log.
    pub fn mark(&self) -> Mark {
        Mark(std::fs::metadata(&self.access_log).map_or(0, |file| file.len()))
    }

    /// The first record after the mark for which this holds, or nothing if none comes in time.
    pub fn record(&self, mark: Mark, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + RECORD_TIMEOUT;
        loop {
            let found = self.records(mark).into_iter().find(|record| wanted(record));
            if found.is_some() || Instant::now() >= deadline {
                return found;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the mesh as Ctrl-C does and checks that it is gone in time.
    pub fn end(&mut self) -> Result<Check, Failure> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let start = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::INT)
            .map_err(|error| Failure::new(format!("can't end the mesh: {error}")))?;
        let status = self.child.wait().map_err(|error| Failure::new(format!("can't wait for the mesh: {error}")))?;
        let took = start.elapsed();
        Ok(Check {
            name: "Ctrl-C".to_owned(),
            expected: "the mesh ends within 2 s".to_owned(),
            got: format!("{status} after {} ms", took.as_millis()),
            reason: String::new(),
            ok: took <= Duration::from_secs(2) && status.success(),
        })
    }

    fn ambit(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn records(&self, mark: Mark) -> Vec<Value> {
        let mut text = String::new();
        let read = File::open(&self.access_log).and_then(|mut file| {
            file.seek(SeekFrom::Start(mark.0))?;
            file.read_to_string(&mut text)
        });
        match read {
            Ok(_) => text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // Only a demo that failed midway comes here with a mesh that still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps what the mesh prints, and tells when both it and the server in MLflow's place are ready.
fn follow(stdout: ChildStdout, output: &Mutex<Vec<String>>, ready: &mpsc::Sender<String>, verbose: bool) {
    let (mut ready_line, mut server_ready) = (None, false);
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if verbose {
            eprintln!("{line}");
        }
        if line.starts_with("ready") {
            ready_line = Some(line.clone());
        }
        server_ready |= line.contains("/mlflow") && line.ends_with(" is ready");
        if server_ready && let Some(line) = ready_line.take() {
            // Nobody waits for a second ready line.
            let _ = ready.send(line);
        }
        if let Ok(mut lines) = output.lock() {
            lines.push(line);
        }
    }
}

// === impl Client ===

impl Client {
    /// Sends a request and waits for the answer.
    pub fn ask(&mut self, method: &str, path: &str) -> Result<Answer, Failure> {
        let ask = Ask { method: method.to_owned(), path: path.to_owned(), headers: Vec::new() };
        let line = serde_json::to_string(&ask).map_err(|error| Failure::new(error.to_string()))?;
        let stdin = self.stdin.as_mut().ok_or_else(|| Failure::new("the client has no standard input"))?;
        writeln!(stdin, "{line}").map_err(|error| Failure::new(format!("the client ended: {error}")))?;
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).map_err(|error| Failure::new(format!("the client ended: {error}")))?;
        serde_json::from_str(&answer)
            .map_err(|error| Failure::new(format!("the client answered `{}`: {error}", answer.trim())))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The end of its input ends the client.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}
