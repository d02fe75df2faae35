//! What can be seen from outside only: the control socket, `run`, `forward`, and how a mesh ends.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_node::control::{
    BindError, ControlClient, ControlConnection, ControlServer, ForwardRequest, Request, Response, RunRequest, VERSION,
};
use ambit_node::run::{RunSpec, attach, exec_in};
use ambit_node::{Capture, NodeProcess};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Bench;
use crate::suite::World;

const PATIENCE: Duration = Duration::from_secs(5);

/// A small mesh: a control socket, a pod per `run`.
pub(crate) async fn serve(process: NodeProcess, path: PathBuf) -> ExitCode {
    let owner = process.owner;
    let server = match ControlServer::bind(&path, owner) {
        Ok(server) => server,
        Err(error @ BindError::Running { .. }) => {
            println!("{error}");
            return ExitCode::from(3);
        }
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let _ = process.host.remove_on_exit(&path);
    let mut world = match World::new(process) {
        Ok(world) => world,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("ready");
    let mut pods = 1;
    loop {
        tokio::select! {
            connection = server.accept() => {
                let Ok(connection) = connection else { return ExitCode::FAILURE };
                pods += 1;
                let Ok(pod) = world.pod(pods, Capture::Outside) else { return ExitCode::FAILURE };
                tokio::spawn(answer(connection, pod));
            }
            _ = crate::suite::until_stopped(&mut world.process) => {
                world.node.end_all_processes(Duration::from_millis(300)).await;
                say("stopped");
                return ExitCode::SUCCESS;
            }
        }
    }
}

/// A node process that doesn't care.
pub(crate) async fn hang(_process: NodeProcess) -> ExitCode {
    println!("ready");
    std::future::pending().await
}

/// A reader that is gone is no failure of the mesh.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn answer(connection: ControlConnection, pod: Arc<ambit_node::PodNamespaces>) {
    match connection.receive().await {
        Ok(Some((Request::Run(request), _))) => {
            if connection.send_session(&request.namespace, &pod).await.is_ok() {
                connection.closed().await;
            }
            say("closed");
        }
        Ok(Some((Request::Forward(_), _))) => {
            let _ = connection.send(&Response::Ready { message: None }, &[]).await;
            while let Ok(Some((Request::Connection { peer }, fds))) = connection.receive().await {
                for fd in fds {
                    let _ = greet(fd, peer).await;
                }
            }
        }
        other => say(&format!("{other:?}")),
    }
    let _ = pod.destroy(Duration::from_millis(100)).await;
}

async fn greet(fd: OwnedFd, peer: std::net::SocketAddr) -> std::io::Result<()> {
    let mut stream = tokio::net::TcpStream::from_std(std::net::TcpStream::from(fd))?;
    let mut message = String::new();
    stream.read_to_string(&mut message).await?;
    stream.write_all(format!("{peer} forwarded {message}").as_bytes()).await?;
    stream.shutdown().await
}

/// `ambit run`, as the command would do it.
pub(crate) fn run_client(path: &Path, argv: &[String]) -> ExitCode {
    let request = RunRequest {
        version: VERSION,
        namespace: "test".to_owned(),
        service_account: "tester".to_owned(),
        name: None,
        labels: Default::default(),
        mesh: false,
    };
    let session = match ControlClient::connect(path).and_then(|connection| attach(connection, request)) {
        Ok(session) => session,
        Err(error) => {
            println!("{error}");
            return ExitCode::from(99);
        }
    };
    let spec = RunSpec {
        argv: argv.iter().map(OsString::from).collect(),
        env: std::env::vars_os().collect(),
        working_dir: std::env::current_dir().unwrap_or_default(),
    };
    match exec_in(&session, &spec) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            println!("{error}");
            ExitCode::from(98)
        }
    }
}

/// `ambit forward`, as the command would do it.
pub(crate) fn forward_client(path: &Path) -> ExitCode {
    let request = ForwardRequest {
        version: VERSION,
        namespace: "test".to_owned(),
        service: "web".to_owned(),
        port: 80,
        identity: None,
    };
    let opened = ControlClient::connect(path)
        .map_err(Into::into)
        .and_then(|connection| ambit_node::forward::open(connection, request, ([127, 0, 0, 1], 0).into()));
    match opened {
        Ok(forwarder) => {
            println!("{}", forwarder.address().map(|address| address.to_string()).unwrap_or_default());
            let Err(error) = forwarder.run();
            println!("{error}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// A running program whose output is read line by line; killed when dropped.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(bench: &Bench, arguments: &[&str]) -> Result<Self, String> {
        let mut child = bench.command(arguments).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.lines.read_line(&mut line);
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// The rest of its output and its end.
    fn end(mut self) -> Result<(String, std::process::ExitStatus), String> {
        let mut rest = String::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                self.lines.read_to_string(&mut rest).map_err(|error| error.to_string())?;
                return Ok((rest, status));
            }
            if Instant::now() > deadline {
                return Err("it doesn't end".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Test = fn(&Bench, &str) -> Result<(), String>;

/// Runs what needs a mesh and a command beside it.
pub(crate) fn check(bench: &Bench) -> Result<(), String> {
    let path = bench.own_folder().join("ambit").join("t.sock");
    let socket = path.to_string_lossy().into_owned();
    let mut failed = Vec::new();
    let tests: [(&str, Test); 7] = [
        ("run passes output, exit code and signals", run_passes_on),
        ("a killed run kills its program", killed_run_kills),
        ("a program of the mesh can't command it", commands_from_inside),
        ("forward hands connections over", forward_hands_over),
        ("a mesh stops at SIGTERM and leaves nothing", stops_cleanly),
        ("kill -9 leaves nothing that stops the next", killed_mesh),
        ("a mesh that doesn't stop is ended", hanging_mesh),
    ];
    for (name, test) in tests {
        let result = test(bench, &socket);
        println!(
            "test {name} ... {}",
            result.as_ref().map_or_else(|why| format!("FAILED: {why}"), |()| "ok".to_owned())
        );
        if result.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

fn mesh(bench: &Bench, socket: &str) -> Result<Running, String> {
    let mut mesh = Running::start(bench, &["--serve", socket])?;
    let line = mesh.line();
    ensure!(line == "ready", "the mesh says `{line}`");
    Ok(mesh)
}

fn run_passes_on(bench: &Bench, socket: &str) -> Result<(), String> {
    let mut mesh = mesh(bench, socket)?;
    let shell = |script: &str| Running::start(bench, &["--run", socket, "/bin/sh", "-c", script])?.end();
    let (text, status) = shell("grep -h ^Cap /proc/self/status; cat /etc/hosts; id -u; exit 42")?;
    ensure!(status.code() == Some(42), "{status}: {text}");
    ensure!(text.contains("10.244.0.2\tpod-2"), "{text}");
    ensure!(text.contains(&format!("\n{}\n", bench.uid)), "{text}");
    let wanted = if bench.uid == 0 { "CapEff:\t00000000200004fb" } else { "CapEff:\t0000000000000000" };
    ensure!(text.contains(wanted), "{text}");
    ensure!(mesh.line() == "closed", "the mesh didn't see the end");

    let (_, status) = shell("kill -9 $$")?;
    ensure!(status.code() == Some(137), "{status}");
    let (_, status) = Running::start(bench, &["--run", socket, "no-such-program"])?.end()?;
    ensure!(status.code() == Some(127), "{status}");

    let mut running = Running::start(
        bench,
        &["--run", socket, "/bin/sh", "-c", "trap 'exit 7' TERM; echo on; while :; do sleep 0.01; done"],
    )?;
    ensure!(running.line() == "on", "it doesn't run");
    running.signal(rustix::process::Signal::TERM);
    let (_, status) = running.end()?;
    ensure!(status.code() == Some(7), "{status}");
    Ok(())
}

fn killed_run_kills(bench: &Bench, socket: &str) -> Result<(), String> {
    let mut mesh = mesh(bench, socket)?;
    let marker = "31415926";
    let mut running =
        Running::start(bench, &["--run", socket, "/bin/sh", "-c", &format!("echo on; exec sleep {marker}")])?;
    ensure!(running.line() == "on", "it doesn't run");
    ensure!(!with_argument(marker).is_empty(), "the program isn't seen");
    running.signal(rustix::process::Signal::KILL);
    running.end()?;
    ensure!(gone(marker), "the program is still there");
    ensure!(mesh.line() == "closed", "the mesh didn't see the end");
    Ok(())
}

fn commands_from_inside(bench: &Bench, socket: &str) -> Result<(), String> {
    let _mesh = mesh(bench, socket)?;
    let program = bench.program.to_string_lossy();
    let (text, status) = Running::start(bench, &["--run", socket, &program, "--run", socket, "true"])?.end()?;
    ensure!(status.code() == Some(99) && text.contains("must not command the mesh"), "{status}: {text}");
    Ok(())
}

fn forward_hands_over(bench: &Bench, socket: &str) -> Result<(), String> {
    let mesh = mesh(bench, socket)?;
    let mut forward = Running::start(bench, &["--forward", socket])?;
    let address = forward.line();
    for round in 0..2 {
        let mut stream = TcpStream::connect(&address).map_err(|error| format!("{address}: {error}"))?;
        let own = stream.local_addr().map_err(|error| error.to_string())?;
        write!(stream, "hello {round}").map_err(|error| error.to_string())?;
        stream.shutdown(std::net::Shutdown::Write).map_err(|error| error.to_string())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).map_err(|error| error.to_string())?;
        ensure!(reply == format!("{own} forwarded hello {round}"), "{reply}");
    }
    drop(mesh);
    let (text, _) = forward.end()?;
    ensure!(text.contains("the mesh ended"), "{text}");
    Ok(())
}

fn stops_cleanly(bench: &Bench, socket: &str) -> Result<(), String> {
    let mesh = mesh(bench, socket)?;
    let (text, status) = Running::start(bench, &["--serve", socket])?.end()?;
    ensure!(status.code() == Some(3), "a second mesh of the same name: {status}");
    ensure!(text.contains(&format!("pid {}", mesh.child.id())), "{text}");

    let marker = "27182818";
    let mut running = Running::start(bench, &["--run", socket, "/bin/sh", "-c", &format!("echo on; sleep {marker}")])?;
    ensure!(running.line() == "on", "it doesn't run");
    let started = Instant::now();
    mesh.signal(rustix::process::Signal::TERM);
    let (text, status) = mesh.end()?;
    println!("  the mesh ended after {:?}", started.elapsed());
    ensure!(started.elapsed() < Duration::from_secs(2), "it took {:?}", started.elapsed());
    ensure!(status.success() && text.contains("stopped"), "{status}: {text}");
    ensure!(!Path::new(socket).exists(), "the socket is still there");
    ensure!(gone(marker), "the program is still there");
    running.end()?;
    Ok(())
}

fn killed_mesh(bench: &Bench, socket: &str) -> Result<(), String> {
    let first = mesh(bench, socket)?;
    let marker = "16180339";
    let mut running = Running::start(bench, &["--run", socket, "/bin/sh", "-c", &format!("echo on; sleep {marker}")])?;
    ensure!(running.line() == "on", "it doesn't run");
    first.signal(rustix::process::Signal::KILL);
    let (_, status) = first.end()?;
    ensure!(status.signal() == Some(9), "{status}");
    ensure!(gone(marker), "a program is still there");
    ensure!(gone("--serve"), "a process of the mesh is still there");
    running.end()?;
    let second = mesh(bench, socket)?;
    second.signal(rustix::process::Signal::INT);
    let (_, status) = second.end()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

fn hanging_mesh(bench: &Bench, _socket: &str) -> Result<(), String> {
    for (signals, longest) in [(1, Duration::from_secs(2)), (2, Duration::from_millis(500))] {
        let mut mesh = Running::start(bench, &["--hang"])?;
        ensure!(mesh.line() == "ready", "it doesn't run");
        let started = Instant::now();
        for _ in 0..signals {
            mesh.signal(rustix::process::Signal::INT);
            // Two signals at once would be one.
            std::thread::sleep(Duration::from_millis(50));
        }
        let (_, status) = mesh.end()?;
        ensure!(started.elapsed() < longest, "{signals} signals: it took {:?}", started.elapsed());
        ensure!(status.code() == Some(137), "{status}");
        ensure!(gone("--hang"), "a process is still there");
    }
    Ok(())
}

/// Waits until no process has that argument.
fn gone(marker: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        if with_argument(marker).is_empty() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Processes of the whole machine with that argument.
fn with_argument(marker: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
            let found = arguments.split(|byte| *byte == 0).any(|argument| {
                argument == marker.as_bytes() || String::from_utf8_lossy(argument).ends_with(&format!("sleep {marker}"))
            });
            found.then(|| entry.file_name().to_string_lossy().into_owned())
        })
        .collect()
}
