//! `ambit client`: an HTTP client that a check can drive: one request a line on standard input, one answer a line on
//! standard output, on one connection that it keeps open. Not listed in the help; the demo and the tests use it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

use super::Failure;

/// Largest answer that is read.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Arguments of `ambit client`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `HOST:PORT` to connect to
    address: String,
    /// Speak HTTP/2 with prior knowledge
    #[arg(long)]
    http2: bool,
    /// Give up on a request after this many milliseconds
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
}

/// A request to send.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The method.
    pub method: String,
    /// The request target, sent exactly so.
    pub path: String,
    /// Extra headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// What came back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The answer's headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The answer's body.
    pub body: String,
    /// Why there was no answer.
    pub error: Option<String>,
    /// True if the request went over the connection of the one before.
    pub reused: bool,
    /// From sending to the whole answer, in microseconds.
    pub elapsed_us: u64,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Answers every line of standard input until it ends.
pub async fn run(args: Args) -> Result<(), Failure> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut sender = None;
    while let Some(line) = lines.next_line().await.map_err(|error| Failure::new(format!("standard input: {error}")))? {
        let ask: Ask = serde_json::from_str(&line).map_err(|error| Failure::new(format!("`{line}`: {error}")))?;
        let started = Instant::now();
        let limit = Duration::from_millis(args.timeout_ms);
        let mut answer = match tokio::time::timeout(limit, exchange(&args, &mut sender, &ask)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer { error: Some(error), ..Answer::default() },
            Err(_) => Answer { error: Some("no answer in time".to_owned()), ..Answer::default() },
        };
        if answer.error.is_some() {
            sender = None;
        }
        answer.elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        println!("{}", serde_json::to_string(&answer).map_err(|error| Failure::new(error.to_string()))?);
    }
    Ok(())
}

async fn exchange(args: &Args, slot: &mut Option<Sender>, ask: &Ask) -> Result<Answer, String> {
    let reused = slot.as_ref().is_some_and(|sender| match sender {
        Sender::Http1(sender) => !sender.is_closed(),
        Sender::Http2(sender) => !sender.is_closed(),
    });
    if !reused {
        *slot = Some(connect(args).await?);
    }
    let Some(sender) = slot else { return Err("not connected".to_owned()) };
    let request = request(args, ask)?;
    let response = match sender {
        Sender::Http1(sender) => {
            sender.ready().await.map_err(|error| chain(&error))?;
            sender.send_request(request).await
        }
        Sender::Http2(sender) => {
            sender.ready().await.map_err(|error| chain(&error))?;
            sender.send_request(request).await
        }
    }
    .map_err(|error| chain(&error))?;
    let status = response.status().as_u16();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await.map_err(|error| error.to_string())?;
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(Answer { status: Some(status), headers, body, reused, ..Answer::default() })
}

async fn connect(args: &Args) -> Result<Sender, String> {
    let stream = TcpStream::connect(&args.address).await.map_err(|error| format!("connect: {error}"))?;
    let io = TokioIo::new(stream);
    if args.http2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(|error| chain(&error))?;
        tokio::spawn(connection);
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await.map_err(|error| chain(&error))?;
        tokio::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}

fn request(args: &Args, ask: &Ask) -> Result<Request<Full<Bytes>>, String> {
    let target = if args.http2 { format!("http://{}{}", args.address, ask.path) } else { ask.path.clone() };
    let uri: Uri = target.parse().map_err(|error| format!("`{target}`: {error}"))?;
    let mut request = Request::builder().method(ask.method.as_str()).uri(uri);
    if !args.http2 {
        request = request.header(header::HOST, &args.address);
    }
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
