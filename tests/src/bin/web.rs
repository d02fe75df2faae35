//! Both ends of HTTP/1.1 for whole-mesh tests, where `ambit echo` and `ambit client` say too little.
//!
//! `web serve NAME ADDR [STATUS]` answers every request with its name and this status (200 if absent), `/health` always with
//! 200. `/hold/MS` is answered after so many milliseconds, an upgrade by sending every byte back, and `/took` with the bodies of
//! all requests for `/v1/traces` so far, in hexadecimal digits.
//!
//! `web socket ADDR PATH` opens a WebSocket and `web tcp ADDR` a connection whose server speaks first. Each prints `open`, sends
//! every line of its standard input, prints what comes as `got ...`, and at the end of the connection `closed`.
#![forbid(unsafe_code)]

use std::{
    env,
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// The key of RFC 6455's own example, and what a server answers to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPTED: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// No body of a test is larger.
const MAX_BODY_BYTES: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["serve", name, address] => serve(name, address, "200"),
        ["serve", name, address, status] => serve(name, address, status),
        ["socket", address, path] => socket(address, path),
        ["tcp", address] => TcpStream::connect(address).and_then(converse),
        _ => Err(io::Error::other("usage: web serve NAME ADDR [STATUS] | web socket ADDR PATH | web tcp ADDR")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("refused: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: &str, address: &str, status: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("{name} listens on {address}");
    for stream in listener.incoming() {
        let (stream, name, status) = (stream?, name.to_owned(), status.to_owned());
        // One client's end, good or bad, is no matter for the others.
        thread::spawn(move || answer_all(stream, &name, &status));
    }
    Ok(())
}

fn answer_all(mut stream: TcpStream, name: &str, status: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let head = head(&mut reader)?;
        let target = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
        if field(&head, "upgrade").is_some() {
            return upgrade(reader, stream);
        }
        let length = field(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; usize::min(length, MAX_BODY_BYTES)];
        reader.read_exact(&mut body)?;
        if target == "/v1/traces" {
            let digits = body.iter().fold(String::new(), |mut digits, byte| {
                let _ = write!(digits, "{byte:02x}");
                digits
            });
            taken().push_str(&digits);
        }
        if let Some(held) = target.strip_prefix("/hold/").and_then(|held| held.parse().ok()) {
            thread::sleep(Duration::from_millis(held));
        }
        let took = (target == "/took").then(|| taken().clone());
        let told = took.as_deref().unwrap_or(name);
        let status = if target == "/health" { "200" } else { status };
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{told}", told.len());
        stream.write_all(answer.as_bytes())?;
    }
}

/// What was taken so far.
fn taken() -> MutexGuard<'static, String> {
    static TAKEN: Mutex<String> = Mutex::new(String::new());
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of a request's head.
fn head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_owned());
    }
}

fn field<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    let mut fields = head.iter().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn upgrade(mut reader: impl Read, mut stream: TcpStream) -> io::Result<()> {
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {ACCEPTED}\r\n\r\n"
    );
    stream.write_all(switch.as_bytes())?;
    io::copy(&mut reader, &mut stream).map(drop)
}

fn socket(address: &str, path: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    // Byte by byte, so that nothing of what follows is taken.
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let answer = String::from_utf8_lossy(&answer);
    if !answer.starts_with("HTTP/1.1 101") {
        return Err(io::Error::other(answer.lines().next().unwrap_or_default().to_owned()));
    }
    converse(stream)
}

fn converse(stream: TcpStream) -> io::Result<()> {
    println!("open");
    let mut writer = stream.try_clone()?;
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            // The reader tells of the end.
            let _ = writeln!(writer, "{line}");
        }
    });
    for line in BufReader::new(stream).lines() {
        match line {
            Ok(line) => println!("got {line}"),
            Err(_) => break,
        }
    }
    println!("closed");
    Ok(())
}
