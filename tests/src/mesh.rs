//! A running `ambit up`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::Place;

/// How long any one thing may take in a test before it counts as failed. Far above what it should take: the machines
/// that run tests are slow and shared.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh started by `ambit up`, ended when dropped.
#[derive(Debug)]
pub struct Mesh<'a> {
    place: &'a Place,
    child: Child,
    lines: Arc<Lines>,
}

/// What a finished command printed.
#[derive(Debug)]
pub struct Output {
    /// Exit code; 128 plus the signal if one ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

#[derive(Debug, Default)]
struct Lines {
    all: Mutex<Vec<(Instant, String)>>,
    more: Condvar,
}

// === impl Mesh ===

impl<'a> Mesh<'a> {
    /// Starts `ambit up -f ...` and waits for its ready line.
    pub fn up(place: &'a Place, arguments: &[&str]) -> Self {
        let mesh = Self::start(place, arguments);
        mesh.wait_for("ready");
        mesh
    }

    /// The same, where the mesh and its programs may have only so many files open.
    pub fn up_with_files(place: &'a Place, arguments: &[&str], files: u32) -> Self {
        let mut command = place.command("/bin/sh".as_ref());
        command.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).arg(place.path("ambit"));
        let mesh = Self::spawn(place, command, arguments);
        mesh.wait_for("ready");
        mesh
    }

    /// Starts `ambit up -f ...` without waiting.
    pub fn start(place: &'a Place, arguments: &[&str]) -> Self {
        Self::spawn(place, place.ambit(), arguments)
    }

    fn spawn(place: &'a Place, mut command: Command, arguments: &[&str]) -> Self {
        command.arg("up").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("`ambit up` starts");
        let lines = Arc::new(Lines::default());
        collect(child.stdout.take().expect("piped"), Arc::clone(&lines));
        collect(child.stderr.take().expect("piped"), Arc::clone(&lines));
        Self { place, child, lines }
    }

    /// Process id of the host process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line holds this text and returns the line and when it was read.
    pub fn wait_for(&self, text: &str) -> (Instant, String) {
        self.wait_for_after(text, 0).1
    }

    /// How many lines there are so far; a place to wait from.
    pub fn mark(&self) -> usize {
        self.lines.all.lock().expect("no reader panics").len()
    }

    /// Waits for a line with this text among those after the mark.
    pub fn wait_for_after(&self, text: &str, mark: usize) -> (usize, (Instant, String)) {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.lines.all.lock().expect("no reader panics");
        loop {
            if let Some((at, line)) = all.iter().enumerate().skip(mark).find(|(_, (_, line))| line.contains(text)) {
                return (at, line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let printed = all.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n");
            assert!(!left.is_zero(), "no line with `{text}` in time; there were:\n{printed}");
            all = self.lines.more.wait_timeout(all, left).expect("no reader panics").0;
        }
    }

    /// All that was printed so far.
    pub fn printed(&self) -> String {
        self.lines.all.lock().expect("no reader panics").iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// `ambit run ARGUMENTS`, to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        finish(self.place.ambit().arg("run").args(arguments))
    }

    /// Sends `ambit client` in a pod some requests and returns the parsed answers.
    pub fn ask(&self, run: &[&str], address: &str, requests: &[(&str, &str)]) -> Vec<serde_json::Value> {
        let requests: Vec<_> =
            requests.iter().map(|(method, path)| serde_json::json!({"method": method, "path": path})).collect();
        self.ask_all(run, address, &requests)
    }

    /// The same for requests as `ambit client` reads them, which may have headers and a body.
    pub fn ask_all(&self, run: &[&str], address: &str, requests: &[serde_json::Value]) -> Vec<serde_json::Value> {
        let input: String = requests.iter().map(|request| format!("{request}\n")).collect();
        let binary = self.place.path("ambit");
        let mut command = self.place.ambit();
        command.arg("run").args(run).arg("--").arg(&binary).args(["client", address]);
        let output = finish_with_input(&mut command, &input);
        assert_eq!(output.code, 0, "{output:?}\n{}", self.printed());
        output.stdout.lines().map(|line| serde_json::from_str(line).expect("the client answers in JSON")).collect()
    }

    /// Sends a signal to the host process.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the end and returns how long that took and the exit code (none if a signal ended it).
    pub fn ended(&mut self) -> (Duration, Option<i32>) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return (start.elapsed(), status.code());
            }
            assert!(start.elapsed() < PATIENCE, "the mesh doesn't end:\n{}", self.printed());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        // Already ended is fine; a test that panics must not leave a mesh behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    finish_with_input(command, "")
}

fn finish_with_input(command: &mut Command, input: &str) -> Output {
    use std::{io::Write, os::unix::process::ExitStatusExt};
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // A program that doesn't read its input is no failure of the test.
    let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().expect("the command ends");
    writer.join().expect("the writer doesn't panic");
    let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    Output {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn collect(stream: impl std::io::Read + Send + 'static, lines: Arc<Lines>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            lines.all.lock().expect("no reader panics").push((Instant::now(), line));
            lines.more.notify_all();
        }
    });
}
