//! Requests as bytes on a socket, and what comes back.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    case::{Connection, Request},
    config::PRINCIPAL_TLV,
    token,
};

/// How long any step may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a response body that are read.
const MAX_BODY_BYTES: u64 = 1024 * 1024;
/// Lines of a response's head.
const MAX_HEAD_LINES: usize = 100;

/// What Envoy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Allowed,
    Denied,
    /// It answered with this status before any policy was asked.
    Refused(u16),
}

/// A connection that starts with a PROXY protocol header.
pub fn connect(to: SocketAddr, connection: &Connection) -> io::Result<TcpStream> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(connection.source_ip, 0).into())?;
    socket.connect_timeout(&to.into(), TIMEOUT)?;
    // Nothing is left to wait for when it is closed, and so no port stays taken.
    socket.set_linger(Some(Duration::ZERO))?;
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&proxy_header(connection)?)?;
    Ok(stream)
}

/// Version 2 of the PROXY protocol.
fn proxy_header(connection: &Connection) -> io::Result<Vec<u8>> {
    const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
    const PROXY_COMMAND: u8 = 0x21;
    const CLIENT_PORT: u16 = 40_000;
    let mut rest = Vec::new();
    let family = match (connection.remote_ip, connection.destination_ip) {
        (IpAddr::V4(remote), IpAddr::V4(destination)) => {
            rest.extend(remote.octets().into_iter().chain(destination.octets()));
            0x11
        }
        (IpAddr::V6(remote), IpAddr::V6(destination)) => {
            rest.extend(remote.octets().into_iter().chain(destination.octets()));
            0x21
        }
        _ => return Err(io::Error::other("the addresses of a PROXY header are of two families")),
    };
    rest.extend(CLIENT_PORT.to_be_bytes());
    rest.extend(connection.destination_port.to_be_bytes());
    if let Some(principal) = &connection.principal {
        rest.push(PRINCIPAL_TLV);
        rest.extend(u16::try_from(principal.len()).map_err(io::Error::other)?.to_be_bytes());
        rest.extend(principal.as_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend([PROXY_COMMAND, family]);
    header.extend(u16::try_from(rest.len()).map_err(io::Error::other)?.to_be_bytes());
    header.extend(rest);
    Ok(header)
}

/// Sends a request and reads the answer. False if the connection is of no more use.
pub fn exchange(stream: &mut BufReader<TcpStream>, request: &Request) -> io::Result<(Answer, bool)> {
    let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, request.target, request.host);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(claims) = &request.claims {
        head.push_str(&format!("authorization: Bearer {}\r\n", token::sign(claims)));
    }
    if ["POST", "PUT", "PATCH"].contains(&request.method.as_str()) {
        head.push_str("content-length: 0\r\n");
    }
    head.push_str("\r\n");
    stream.get_mut().write_all(head.as_bytes())?;
    let response = read_response(stream, request.method == "HEAD")?;
    let answer = match response.status {
        200 => Answer::Allowed,
        403 => Answer::Denied,
        status => Answer::Refused(status),
    };
    Ok((answer, response.keeps_open))
}

struct Response {
    status: u16,
    keeps_open: bool,
}

fn read_response(stream: &mut BufReader<TcpStream>, is_head: bool) -> io::Result<Response> {
    let line = read_line(stream)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status in `{line}`")))?;
    let (mut length, mut keeps_open) = (0, true);
    for _ in 0..MAX_HEAD_LINES {
        let line = read_line(stream)?.to_ascii_lowercase();
        if line.is_empty() {
            let length = if is_head { 0 } else { length };
            io::copy(&mut stream.take(length), &mut io::sink())?;
            return Ok(Response { status, keeps_open });
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().map_err(io::Error::other)?.min(MAX_BODY_BYTES);
        }
        keeps_open &= line != "connection: close";
    }
    Err(io::Error::other("a response with too many header lines"))
}

fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.take(MAX_BODY_BYTES).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// Sends the first bytes of a connection: they come back if it is allowed.
pub fn knock(mut stream: TcpStream, connection: &Connection) -> io::Result<Answer> {
    let sent = match &connection.sni {
        Some(name) => client_hello(name),
        None => b"hello".to_vec(),
    };
    stream.write_all(&sent)?;
    let mut first = [0];
    match stream.read(&mut first) {
        Ok(0) => Ok(Answer::Denied),
        Ok(_) => Ok(Answer::Allowed),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Answer::Denied),
        Err(error) => Err(error),
    }
}

/// The least of a TLS 1.2 handshake's first message that names a server.
fn client_hello(name: &str) -> Vec<u8> {
    fn sized(width: usize, body: &[u8]) -> Vec<u8> {
        let length = body.len().to_be_bytes();
        [&length[length.len() - width..], body].concat()
    }
    let server_name = sized(2, &[&[0], sized(2, name.as_bytes()).as_slice()].concat());
    let extension = [[0, 0].as_slice(), &sized(2, &server_name)].concat();
    let hello = [
        [3, 3].as_slice(),
        &[7; 32],
        &sized(1, &[]),
        &sized(2, &[0x13, 0x01, 0xc0, 0x2f]),
        &sized(1, &[0]),
        &sized(2, &extension),
    ]
    .concat();
    let handshake = [[1].as_slice(), &sized(3, &hello)].concat();
    [[22, 3, 1].as_slice(), &sized(2, &handshake)].concat()
}
