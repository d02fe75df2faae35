//! Both ends of a server-first protocol, for whole-mesh tests: the server greets, then repeats each line it gets.
//!
//! `peer listen ADDR` serves; `peer dial ADDR [LINE...]` prints the greeting, sends each line and prints what comes back,
//! then waits for the end of the connection and prints `end`.
#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::Duration,
};

/// No test waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["listen", address] => listen(address),
        ["dial", address, lines @ ..] => dial(address, lines),
        _ => Err(io::Error::other("usage: peer listen ADDR | peer dial ADDR [LINE...]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("refused: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("peer listens on {address}");
    for stream in listener.incoming() {
        let stream = stream?;
        // One client's end, good or bad, is no matter for the others.
        thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    writeln!(stream, "hello {}", stream.peer_addr()?.ip())?;
    let reader = BufReader::new(stream.try_clone()?);
    for line in reader.lines() {
        writeln!(stream, "again {}", line?)?;
    }
    Ok(())
}

fn dial(address: &str, lines: &[&str]) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut print_next = || {
        let mut line = String::new();
        let length = reader.read_line(&mut line)?;
        print!("{line}");
        if length == 0 { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) } else { Ok(()) }
    };
    print_next()?;
    for line in lines {
        writeln!(stream, "{line}")?;
        print_next()?;
    }
    if lines.is_empty() {
        // Stays open until somebody else ends it.
        let ended = print_next().err();
        println!("end {ended:?}");
    }
    Ok(())
}
