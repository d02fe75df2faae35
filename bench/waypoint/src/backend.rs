//! What is behind the waypoint: an HTTP/1.1 server, reached as it is and through a node proxy in the same process.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, rc::Rc};

use ambit_hbone::Limits;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use crate::{
    child::{self, Running},
    codec::end_of_head,
    place,
    scenario::{BACKEND_IP, OTHER_BACKEND_IP, body_of, server},
};

/// Where a backend is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// The server itself.
    pub(crate) plain: SocketAddr,
    /// HBONE port of its node proxy.
    pub(crate) hbone_port: u16,
}

/// Responses by the size of their body.
type Responses = BTreeMap<usize, Vec<u8>>;

/// Sizes of bodies that can be asked for.
pub(crate) const BODIES: [usize; 3] = [0, 1024, 64 * 1024];
/// Longest head that is read.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const READ_BYTES: usize = 4096;
/// How often a port is looked for that is free at both addresses.
const MAX_LISTEN_TRIES: usize = 20;

/// Starts one as a process of its own.
pub(crate) fn start(folder: &Path) -> Result<(Running, Address), String> {
    let (running, line) = child::start(folder, &["backend".to_owned()])?;
    let read = |line: &str| {
        let (plain, port) = line.split_once(' ')?;
        Some(Address { plain: plain.parse().ok()?, hbone_port: port.parse().ok()? })
    };
    let address = read(&line).ok_or_else(|| format!("the backend says `{line}`"))?;
    Ok((running, address))
}

/// In that process.
pub(crate) fn run(folder: &Path) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let folder = folder.to_owned();
    let served = LocalSet::new();
    served.spawn_local(async move {
        if let Err(error) = serve(&folder).await {
            eprintln!("backend: {error}");
        }
    });
    runtime.block_on(async {
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            // The parent's end of it is never written to.
            let _ = io::Read::read(&mut io::stdin(), &mut [0]);
            drop(ended);
        });
        let _ = served.run_until(end).await;
    });
    Ok(())
}

async fn serve(folder: &Path) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let certificates = place::certificates(folder)?;
    let (plain, hbone) = (listen().await.map_err(failed)?, listen().await.map_err(failed)?);
    let responses: Rc<Responses> = Rc::new(BODIES.into_iter().map(|body| (body, response(body))).collect());
    let address = plain[0].local_addr().map_err(failed)?;
    println!("{address} {}", hbone[0].local_addr().map_err(failed)?.port());
    let (plain, hbone) = (&plain, &hbone);
    loop {
        tokio::select! {
            accepted = accept(plain) => {
                let stream = accepted.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                spawn_local(answer(stream, Rc::clone(&responses)));
            }
            accepted = accept(hbone) => {
                let stream = accepted.map_err(failed)?;
                let certificate = certificates.get(&server()).await.map_err(|error| error.to_string())?;
                spawn_local(tunnels(stream, certificate, Rc::clone(&responses)));
            }
        }
    }
}

/// One port at both addresses.
async fn listen() -> io::Result<[TcpListener; 2]> {
    let mut tries = 0;
    loop {
        let first = TcpListener::bind((BACKEND_IP, 0)).await?;
        match TcpListener::bind((OTHER_BACKEND_IP, first.local_addr()?.port())).await {
            Ok(second) => return Ok([first, second]),
            Err(error) if tries == MAX_LISTEN_TRIES => return Err(error),
            Err(_taken) => tries += 1,
        }
    }
}

async fn accept([one, other]: &[TcpListener; 2]) -> io::Result<TcpStream> {
    let accepted = tokio::select! {
        accepted = one.accept() => accepted,
        accepted = other.accept() => accepted,
    };
    accepted.map(|(stream, _)| stream)
}

async fn tunnels(
    stream: TcpStream,
    certificate: std::sync::Arc<ambit_identity::WorkloadCertificate>,
    responses: Rc<Responses>,
) {
    let mut connection = match ambit_hbone::accept(stream, certificate, &Limits::default()).await {
        Ok(connection) => connection,
        Err(error) => return eprintln!("backend: {error}"),
    };
    while let Some(Ok(request)) = connection.next().await {
        let responses = Rc::clone(&responses);
        spawn_local(async move {
            if let Ok(tunnel) = request.accept(http::HeaderMap::new()) {
                answer(tunnel, responses).await;
            }
        });
    }
}

/// Answers one request after the other until the stream ends or makes no sense.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, responses: Rc<Responses>) {
    let mut bytes = Vec::with_capacity(READ_BYTES);
    loop {
        while let Some(end) = end_of_head(&bytes) {
            let Some(response) = asked(&bytes[..end]).and_then(|body| responses.get(&body)) else { return };
            if stream.write_all(response).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            bytes.drain(..end);
        }
        match stream.read_buf(&mut bytes).await {
            Ok(count) if count > 0 && bytes.len() <= MAX_HEAD_BYTES => {}
            _ => return,
        }
    }
}

/// The body that a request without one asks for.
fn asked(head: &[u8]) -> Option<usize> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    body_of(std::str::from_utf8(line).ok()?.strip_prefix("GET ")?.split(' ').next()?)
}

fn response(body: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nserver: backend\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\ncontent-type: text/plain\r\n\
         content-length: {body}\r\n\r\n"
    );
    let mut response = head.into_bytes();
    response.resize(response.len() + body, b'x');
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_the_size_they_want() {
        assert_eq!(asked(b"GET /bytes/1024 HTTP/1.1\r\nhost: a\r\n\r\n"), Some(1024));
        assert_eq!(asked(b"POST /bytes/1024 HTTP/1.1\r\nhost: a\r\n\r\n"), None);
        assert!(response(1024).ends_with(&[b'x'; 1024]));
    }
}
