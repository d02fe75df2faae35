//! Keys from real servers over real sockets: HTTP and HTTPS, redirects, failures, what may not be reached.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;

const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"}]}"#;
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that gives its answers one after the other, the last one again and again, and keeps what it was asked.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    answers: Arc<Mutex<VecDeque<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Names that lead to loopback, and pods of the mesh.
#[derive(Debug)]
struct Names(Vec<(&'static str, SocketAddr)>);

impl Server {
    async fn start(answers: &[String], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server = Self {
            address: listener.local_addr().expect("bound"),
            answers: Arc::new(Mutex::new(answers.iter().cloned().collect())),
            asked: Arc::default(),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serving, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serving.serve(stream).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serving.serve(stream).await,
                            Err(error) => serving.note(format!("TLS: {error}")),
                        },
                    }
                });
            }
        });
        server
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        self.note(String::from_utf8_lossy(&head).into_owned());
        let answer = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = answers.front().cloned().unwrap_or_default();
            if answers.len() > 1 {
                answers.pop_front();
            }
            answer
        };
        if answer == "never" {
            return std::future::pending().await;
        }
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    fn note(&self, text: String) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Outside for Names {
    fn resolve(&self, host: String) -> Asked<Vec<IpAddr>> {
        let found: Vec<_> = self.0.iter().filter(|(name, _)| *name == host).map(|(_, address)| address.ip()).collect();
        Box::pin(async move { if found.is_empty() { Err(io::Error::other("no such name")) } else { Ok(found) } })
    }

    fn connect(&self, address: SocketAddr, _inside: bool) -> Asked<TcpStream> {
        Box::pin(TcpStream::connect(address))
    }
}

impl Inside for Names {
    fn endpoints(&self, host: String, _port: u16) -> Pin<Box<dyn Future<Output = Option<Vec<SocketAddr>>> + Send>> {
        let found: Vec<_> = self.0.iter().filter(|(name, _)| *name == host).map(|(_, address)| *address).collect();
        Box::pin(async move { host.ends_with(".svc.cluster.local").then_some(found) })
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn moved(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
}

fn ways(names: Vec<(&'static str, SocketAddr)>, trust: Trust) -> Ways {
    let (outside, inside) = (Arc::new(Names(names.clone())), Arc::new(Names(names)));
    Ways { outside, inside, trust }
}

fn loopback() -> Ranges {
    Ranges::parse(&["127.0.0.0/8".into()])
}

async fn get(ways: &Ways, source: KeySource) -> Result<String, String> {
    fetch::fetch(ways, &source, &loopback(), Duration::from_secs(5)).await
}

#[tokio::test]
async fn keys_come_from_an_address_or_by_discovery_wherever_they_have_moved_to() {
    let ways = ways(vec![], Trust::default());
    let server = Server::start(&[ok(KEYS)], None).await;
    assert_eq!(get(&ways, KeySource::Uri(server.url("/jwks.json?v=1"))).await.as_deref(), Ok(KEYS));
    let asked = server.asked().remove(0);
    assert!(asked.starts_with("GET /jwks.json?v=1 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: {}\r\n", server.address)), "{asked}");

    let discovery = ok(&format!(r#"{{"issuer":"x","jwks_uri":"{}"}}"#, server.url("/found")));
    let issuer = Server::start(&[discovery], None).await;
    assert_eq!(get(&ways, KeySource::Issuer(issuer.url("/realm/"))).await.as_deref(), Ok(KEYS));
    assert!(issuer.asked()[0].starts_with("GET /realm/.well-known/openid-configuration "), "{:?}", issuer.asked());
    assert!(server.asked()[1].starts_with("GET /found "));

    let elsewhere = Server::start(&[moved("/second"), moved(&server.url("/third"))], None).await;
    assert_eq!(get(&ways, KeySource::Uri(elsewhere.url("/first"))).await.as_deref(), Ok(KEYS));
    assert!(elsewhere.asked()[1].starts_with("GET /second ") && server.asked()[2].starts_with("GET /third "));
}

#[tokio::test]
async fn what_is_no_key_set_is_refused_with_its_reason() {
    let ways = ways(vec![], Trust::default());
    for (answer, reason) in [
        (ok("<html>"), "isn't a JSON Web Key Set"),
        (ok(r#"{"keys":[]}"#), "none of its 0 keys"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(), "the answer is 404"),
        (moved("/again"), "it has moved more than 3 times"),
        (moved("ftp://elsewhere/"), "isn't one of HTTP or HTTPS"),
        (moved("http://user@127.0.0.1/"), "isn't one of HTTP or HTTPS"),
        (ok(&" ".repeat(300 * 1024)), "breaks off"),
        ("nonsense\r\n\r\n".to_owned(), "can't be read"),
    ] {
        let server = Server::start(&[answer], None).await;
        let refused = get(&ways, KeySource::Uri(server.url("/"))).await.expect_err(reason);
        assert!(refused.contains(reason) && refused.starts_with("the keys of http://127.0.0.1:"), "{refused}");
    }
    let silent = Server::start(&["never".to_owned()], None).await;
    let source = KeySource::Uri(silent.url("/"));
    let refused = fetch::fetch(&ways, &source, &loopback(), Duration::from_millis(100)).await.expect_err("no answer");
    assert!(refused.contains("no answer within 100ms"), "{refused}");
}

#[tokio::test]
async fn addresses_that_only_this_machine_reaches_are_not_asked() {
    let server = Server::start(&[ok(KEYS)], None).await;
    let names = vec![("sneaky.example", server.address), ("keys.a.svc.cluster.local", server.address)];
    let ways = ways(names, Trust::default());
    let port = server.address.port();
    for host in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "sneaky.example", "keys.a.svc.cluster.local"] {
        let source = KeySource::Uri(format!("http://{host}:{port}/"));
        let refused = fetch::fetch(&ways, &source, &Ranges::default(), PATIENCE).await.expect_err(host);
        assert!(refused.contains("jwksAllowedRanges"), "{refused}");
    }
    // What is allowed may move to what isn't.
    let names = Ranges::parse(&["127.0.0.1".into()]);
    let elsewhere = Server::start(&[moved("http://169.254.169.254/latest/meta-data")], None).await;
    let source = KeySource::Uri(elsewhere.url("/"));
    let refused = fetch::fetch(&ways, &source, &names, PATIENCE).await.expect_err("refused");
    assert!(refused.contains("169.254.169.254, where keys may not be fetched from"), "{refused}");
    assert_eq!(server.asked().len(), 0);
    // A pod of the mesh, once its range is allowed; a name of the mesh that nobody has is not looked for elsewhere.
    let source = KeySource::Uri(format!("http://keys.a.svc.cluster.local:{port}/"));
    assert_eq!(get(&ways, source).await.as_deref(), Ok(KEYS));
    let source = KeySource::Uri("http://other.a.svc.cluster.local/".into());
    assert!(get(&ways, source).await.expect_err("nobody").contains("has no pod that is ready"));
}

#[tokio::test]
async fn a_key_server_must_show_a_certificate_that_is_trusted_for_its_name() {
    let made = rcgen::generate_simple_self_signed(["issuer.example".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let certificate = made.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate.clone()], key);
    let server = Server::start(&[ok(KEYS)], Some(TlsAcceptor::from(Arc::new(config.expect("a certificate"))))).await;
    let names = vec![("issuer.example", server.address), ("other.example", server.address)];
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let (ways, port) = (ways(names, Trust::of(roots)), server.address.port());
    let source = |host: &str| KeySource::Uri(format!("https://{host}:{port}/keys"));
    assert_eq!(get(&ways, source("issuer.example")).await.as_deref(), Ok(KEYS));
    let refused = get(&ways, source("other.example")).await.expect_err("another name");
    assert!(refused.contains("not valid for name"), "{refused}");
    let refused = get(&ways, KeySource::Uri(format!("http://issuer.example:{port}/"))).await;
    assert!(refused.is_err(), "no plain text on a TLS port: {refused:?}");
    // From TLS to plain text.
    let elsewhere = Server::start(&[moved("http://issuer.example/")], None).await;
    let refused = get(&ways, KeySource::Uri(elsewhere.url("/"))).await.expect_err("the port is closed");
    assert!(!refused.contains("without TLS"), "{refused}");
    server.answers.lock().expect("unpoisoned").push_front(moved("http://issuer.example/"));
    let refused = get(&ways, source("issuer.example")).await.expect_err("a downgrade");
    assert!(refused.contains("without TLS"), "{refused}");
}

/// A keeper of keys at work.
struct Keeping {
    wanted: watch::Sender<Wanted>,
    found: mpsc::Receiver<(KeySource, Fetched)>,
}

impl Keeping {
    fn start(wanted: Wanted) -> Self {
        let (wanted, wants) = watch::channel(wanted);
        let (finds, found) = mpsc::channel(8);
        tokio::spawn(keep(ways(vec![], Trust::default()), wants, finds));
        Self { wanted, found }
    }

    async fn next(&mut self) -> Fetched {
        let found = tokio::time::timeout(PATIENCE, self.found.recv()).await;
        found.expect("in time").expect("the keeper goes on").1
    }
}

fn wanted(server: &Server) -> Wanted {
    let sources = BTreeMap::from([(KeySource::Uri(server.url("/")), Duration::from_secs(5))]);
    Wanted { sources, ranges: loopback(), moved: 0 }
}

#[tokio::test]
async fn failures_are_told_and_tried_again_and_a_moved_pod_is_asked_at_once() {
    let failing = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned();
    let server = Server::start(&[failing.clone(), failing.clone(), failing, ok(KEYS)], None).await;
    let mut keeping = Keeping::start(wanted(&server));
    let start = Instant::now();
    assert!(keeping.next().await.expect_err("the first").contains("500"));
    assert!(keeping.next().await.is_err());
    assert!(start.elapsed() >= MIN_KEY_BACKOFF * 8 / 10, "after a pause");
    let paused = Instant::now();
    keeping.wanted.send_modify(|wanted| wanted.moved += 1);
    assert!(keeping.next().await.is_err());
    assert!(paused.elapsed() < MIN_KEY_BACKOFF * 18 / 10, "not the doubled pause");
    keeping.wanted.send_modify(|wanted| wanted.moved += 1);
    assert_eq!(keeping.next().await.as_deref(), Ok(KEYS));
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn keys_are_fetched_anew_when_the_ranges_change_and_a_failure_leaves_the_old_ones_in_force() {
    let gone = "HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n".to_owned();
    let other = KEYS.replace("Bwc\"", "Bwc\",\"kid\":\"new\"");
    let server = Server::start(&[ok(KEYS), gone, ok(&other)], None).await;
    let mut keeping = Keeping::start(Wanted { ranges: Ranges::default(), ..wanted(&server) });
    assert!(keeping.next().await.expect_err("not allowed").contains("jwksAllowedRanges"));
    assert_eq!(server.asked().len(), 0);
    keeping.wanted.send_modify(|wanted| wanted.ranges = loopback());
    assert_eq!(keeping.next().await.as_deref(), Ok(KEYS));
    // Asked for again, it answers 410: nothing is told, and after the pause the next answer is taken up.
    keeping.wanted.send_modify(|wanted| wanted.ranges = Ranges::parse(&["127.0.0.1".into()]));
    assert_eq!(keeping.next().await.as_deref(), Ok(other.as_str()));
    assert_eq!(server.asked().len(), 3);
    // Nobody wants them any more.
    keeping.wanted.send_modify(|wanted| wanted.sources.clear());
    drop(keeping.wanted);
    assert!(tokio::time::timeout(PATIENCE, keeping.found.recv()).await.expect("it ends").is_none());
}
