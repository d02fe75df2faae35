//! What the tests run inside of pods: this program again, under the name `ambit`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(4);

/// Runs one command; prints what it finds.
pub(crate) fn run(command: &str, arguments: &[String]) -> ExitCode {
    let text = |index: usize| arguments.get(index).map(String::as_str).unwrap_or_default();
    let result = match command {
        "connect" => connect(text(0), text(1)),
        "serve" => serve(text(0)),
        "http-after" => http_after(text(0), text(1)),
        "dns" => dns(text(0)),
        "status" => status(),
        "cat" => fs::read_to_string(text(0)).map(|content| print!("{content}")),
        "ls" => fs::read_dir(text(0)).map(|entries| entries.flatten().for_each(|entry| println!("{entry:?}"))),
        "exit" => return ExitCode::from(text(0).parse::<u8>().unwrap_or(1)),
        "sleep" => {
            println!("sleeping");
            std::thread::sleep(Duration::from_secs(600));
            Ok(())
        }
        other => Err(std::io::Error::other(format!("no such command: {other}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn connect(address: &str, message: &str) -> std::io::Result<()> {
    let address = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(message.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    println!("{reply}");
    Ok(())
}

/// Answers each connection with who it saw and what it got.
fn serve(address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    loop {
        let (mut stream, peer) = listener.accept()?;
        let mut message = String::new();
        stream.read_to_string(&mut message)?;
        write!(stream, "{} said {message}", peer.ip())?;
    }
}

/// An HTTP server that comes up late and answers with that status.
fn http_after(address: &str, status: &str) -> std::io::Result<()> {
    std::thread::sleep(Duration::from_millis(200));
    let listener = TcpListener::bind(address)?;
    println!("listening");
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 512];
        let _ = stream.read(&mut request)?;
        write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn dns(server: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Connected, so that an answer from another address than asked doesn't count.
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"question")?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer[..length]));
    Ok(())
}

/// Who this is and what it may do.
fn status() -> std::io::Result<()> {
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        if ["CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Uid"].iter().any(|name| line.starts_with(name)) {
            println!("{}", line.replace('\t', " "));
        }
    }
    println!("hostname {}", rustix::system::uname().nodename().to_string_lossy());
    println!("cwd {}", std::env::current_dir()?.display());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    println!("mark {}", outcome(socket.set_mark(0x539)));
    println!("transparent {}", outcome(socket.set_ip_transparent_v4(true)));
    let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4));
    println!("raw {}", outcome(raw.map(drop)));
    println!(
        "unmount {}",
        outcome(rustix::mount::unmount("/etc/resolv.conf", rustix::mount::UnmountFlags::DETACH).map_err(Into::into))
    );
    println!("node's root {}", outcome(fs::read_dir("/proc/1/root").map(drop)));
    Ok(())
}

fn outcome(result: std::io::Result<()>) -> String {
    result.map_or_else(|error| format!("refused: {error}"), |()| "allowed".to_owned())
}
