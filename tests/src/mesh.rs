//! A running `ambit up`.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::{Forward, Place};

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

/// A command of `ambit run` that is under way, ended when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Arc<Lines>,
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
        self.lines.wait_for(text, mark)
    }

    /// Waits until so many pods have been reported ready.
    pub fn wait_for_pods(&self, count: usize) {
        let mut mark = 0;
        for _ in 0..count {
            mark = self.wait_for_after(" is ready", mark).0 + 1;
        }
    }

    /// All that was printed so far.
    pub fn printed(&self) -> String {
        self.lines.printed()
    }

    /// Starts `ambit run ARGUMENTS` and doesn't wait for its end.
    pub fn begin(&self, arguments: &[&str]) -> Running {
        let mut command = self.place.ambit();
        command.arg("run").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("`ambit run` starts");
        let lines = Arc::new(Lines::default());
        collect(child.stdout.take().expect("piped"), Arc::clone(&lines));
        collect(child.stderr.take().expect("piped"), Arc::clone(&lines));
        let stdin = child.stdin.take().expect("piped");
        Running { child, stdin, lines }
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

    /// A way into the mesh for clients in the test itself, under an identity (`NS/SA`), to `NS/SERVICE:PORT`.
    pub fn forward(&self, identity: &str, service: &str) -> Forward {
        let mut command = self.place.ambit();
        command.args(["forward", service, "--as", identity]);
        Forward::start(&mut command)
    }

    /// A connection to the operators' port of the first waypoint.
    pub fn connect_to_operators(&self) -> std::net::TcpStream {
        let printed = self.printed();
        let address = printed.split("operators at http://").nth(1).and_then(|rest| rest.lines().next());
        let address = address.unwrap_or_else(|| panic!("no operators' port in {printed}"));
        std::net::TcpStream::connect(address).expect("the operators' port")
    }

    /// What a waypoint's operators' port (`--waypoint-admin`) says about this path.
    pub fn operators(&self, path: &str) -> String {
        let mut stream = self.connect_to_operators();
        crate::http1::send(&mut stream, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"));
        crate::http1::rest(&mut stream)
    }

    /// Memory of the process that holds the control plane and all proxies, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        descendants(self.pid()).into_iter().filter_map(resident).max().expect("a process of the mesh")
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

// === impl Running ===

impl Running {
    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        // One that has ended hears nothing; what it printed says so.
        let _ = writeln!(self.stdin, "{line}");
    }

    /// Waits until a line holds this text and returns it.
    pub fn wait_for(&self, text: &str) -> String {
        self.lines.wait_for(text, 0).1.1
    }

    /// All that was printed so far.
    pub fn printed(&self) -> String {
        self.lines.printed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Lines ===

impl Lines {
    fn wait_for(&self, text: &str, mark: usize) -> (usize, (Instant, String)) {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.all.lock().expect("no reader panics");
        loop {
            if let Some((at, line)) = all.iter().enumerate().skip(mark).find(|(_, (_, line))| line.contains(text)) {
                return (at, line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let printed = all.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n");
            assert!(!left.is_zero(), "no line with `{text}` in time; there were:\n{printed}");
            all = self.more.wait_timeout(all, left).expect("no reader panics").0;
        }
    }

    fn printed(&self) -> String {
        self.all.lock().expect("no reader panics").iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    finish_with_input(command, "")
}

fn finish_with_input(command: &mut Command, input: &str) -> Output {
    use std::os::unix::process::ExitStatusExt;
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

/// Processes that this one has started, and those that they have started.
fn descendants(of: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
    let parents: Vec<(u32, u32)> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, status(pid, "PPid:")?.parse().ok()?))
        })
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// What a process of `ambit` has in memory.
fn resident(pid: u32) -> Option<u64> {
    let kilobytes: u64 = status(pid, "VmRSS:")?.split(' ').next()?.parse().ok()?;
    (status(pid, "Name:")? == "ambit").then_some(kilobytes * 1024)
}

fn status(pid: u32, field: &str) -> Option<String> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    all.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned()))
}
