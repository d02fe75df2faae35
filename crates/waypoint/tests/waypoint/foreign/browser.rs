use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use data_encoding::BASE64;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::{FOREIGN_PATIENCE, gate, mesh};
use crate::{
    mesh::{Shape, header},
    tools,
};

/// Sends texts and bytes through a WebSocket, and says how it went by a request of its own.
const PAGE: &str = r#"<!doctype html><title>page</title><script>
const bytes = new Uint8Array(100000).map((_, index) => index % 251);
const expected = ["hello", "ünd", bytes];
const say = what => fetch("/said/" + encodeURIComponent(what));
const socket = new WebSocket("ws://" + location.host + "/socket");
socket.binaryType = "arraybuffer";
let next = 0;
const send = () => next < expected.length ? socket.send(expected[next]) : socket.close(4000, "done");
socket.onopen = send;
socket.onmessage = ({data}) => {
  const same = typeof data === "string" ? data === expected[next]
    : data.byteLength === bytes.length && new Uint8Array(data).every((byte, index) => byte === bytes[index]);
  if (!same) { say("message " + next + " differs"); return; }
  next += 1;
  send();
};
socket.onclose = ({code, reason, wasClean}) => say([code, reason, wasClean, next].join(" "));
</script>"#;
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Ended when dropped.
struct Browser(Child);

/// A site with the page and its WebSocket; what the page says goes to `said`.
async fn site(said: mpsc::UnboundedSender<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let said = said.clone();
            tokio::spawn(async move {
                // Browsers end connections as they like.
                let _ = serve(stream, said).await;
            });
        }
    });
    address
}

async fn serve(mut stream: TcpStream, said: mpsc::UnboundedSender<String>) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path == "/socket" {
            return socket(stream, header(&head, "sec-websocket-key").unwrap_or_default()).await;
        }
        if let Some(words) = path.strip_prefix("/said/") {
            let _ = said.send(words.to_owned());
        }
        let body = if path == "/" { PAGE } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
    }
}

/// Sends every message back until the client closes (RFC 6455).
async fn socket(mut stream: TcpStream, key: &str) -> std::io::Result<()> {
    let algorithm = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    let accept =
        BASE64.encode(aws_lc_rs::digest::digest(algorithm, format!("{key}{ACCEPT_SUFFIX}").as_bytes()).as_ref());
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
    );
    stream.write_all(switch.as_bytes()).await?;
    loop {
        let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
        let length = match second & 0x7f {
            126 => stream.read_u16().await?.into(),
            127 => stream.read_u64().await?,
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        stream.read_exact(&mut mask).await?;
        let mut payload = vec![0; usize::try_from(length).expect("small messages")];
        stream.read_exact(&mut payload).await?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        let mut frame = vec![first];
        match u16::try_from(length) {
            Ok(short @ 0..126) => frame.push(short.to_be_bytes()[1]),
            Ok(medium) => {
                frame.push(126);
                frame.extend(medium.to_be_bytes());
            }
            Err(_) => {
                frame.push(127);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend(payload);
        stream.write_all(&frame).await?;
        // A close frame is answered by the same.
        if first & 0x0f == 8 {
            return stream.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browsers_websocket_works() {
    let Some(chromium) = tools::program(&["chromium", "chromium-browser", "google-chrome", "chrome"]) else { return };
    let (sender, mut said) = mpsc::unbounded_channel();
    let mesh = mesh(Shape::of(site(sender).await)).await;
    let address = gate(&mesh).await;
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(chromium);
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg("--remote-debugging-port=0").arg(format!("http://{address}/"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _browser = Browser(command.spawn().expect("it starts"));
    let words = tokio::time::timeout(FOREIGN_PATIENCE, said.recv()).await.expect("the page says something");
    let words = words.expect("the site runs");
    assert_eq!(words, "4000%20done%20true%203");
}

// === impl Browser ===

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
