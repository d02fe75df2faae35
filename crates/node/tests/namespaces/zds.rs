//! ZDS between real namespaces: the agent's end, the proxy's end, and agents that behave badly.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambit_hbone::Network;
use ambit_node::zds::{AddError, Client, NetworkNamespace, ProtocolError, Proxies, Server, Status, WorkloadInfo};
use ambit_node::{Capture, PodNamespaces};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::suite::{Outcome, World};

/// What a test's proxy listens on in its pods.
const PORT: u16 = 15_008;
const PATIENCE: Duration = Duration::from_secs(9);

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

type Listeners = Arc<Mutex<BTreeMap<String, Socket>>>;

/// Serves a pod by listening in it.
struct Listening {
    listeners: Listeners,
}

/// A proxy that runs.
struct Proxy {
    listeners: Listeners,
    status: watch::Receiver<Status>,
    task: JoinHandle<ProtocolError>,
}

impl Proxies for Listening {
    fn start(&mut self, uid: &str, _info: &WorkloadInfo, network: &Arc<NetworkNamespace>) -> Result<(), String> {
        let listen = || {
            let socket = network.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_port(true)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into())?;
            socket.listen(16)?;
            Ok(socket)
        };
        let socket = listen().map_err(|error: io::Error| error.to_string())?;
        self.listeners.lock().expect("no panic").insert(uid.to_owned(), socket);
        Ok(())
    }

    fn stop(&mut self, uid: &str) {
        self.listeners.lock().expect("no panic").remove(uid);
    }
}

impl Proxy {
    fn start(path: &Path) -> Self {
        let listeners = Listeners::default();
        let (client, status) = Client::new(path);
        let proxies = Listening { listeners: Arc::clone(&listeners) };
        let task = tokio::spawn(async move {
            match client.run(proxies).await {
                Ok(never) => match never {},
                Err(error) => error,
            }
        });
        Self { listeners, status, task }
    }

    fn pods(&self) -> Vec<String> {
        self.listeners.lock().expect("no panic").keys().cloned().collect()
    }

    async fn until(&mut self, what: &str, reached: impl FnMut(&Status) -> bool) -> Outcome {
        let came = matches!(tokio::time::timeout(PATIENCE, self.status.wait_for(reached)).await, Ok(Ok(_)));
        ensure!(came, "never came to: {what}; it is {:?}", self.status.borrow());
        Ok(())
    }

    /// Ends it like a crash: its listeners close with its connection.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn socket_path(name: &str) -> Result<(tempfile::TempDir, PathBuf), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = folder.path().join(name);
    Ok((folder, path))
}

fn info(name: &str) -> WorkloadInfo {
    WorkloadInfo { name: name.to_owned(), namespace: "test".to_owned(), service_account: "sa".to_owned() }
}

fn namespace(pod: &PodNamespaces) -> Result<OwnedFd, String> {
    pod.network().as_fd().try_clone_to_owned().map_err(|error| error.to_string())
}

/// Somebody listens in the pod.
async fn is_served(pod: &PodNamespaces) -> bool {
    let connect = async {
        let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        socket.connect(SocketAddr::from(([127, 0, 0, 1], PORT))).await
    };
    connect.await.is_ok()
}

async fn served(count: usize, server: &Server) -> Outcome {
    let mut synced = server.synced();
    match tokio::time::timeout(PATIENCE, synced.wait_for(|proxies| *proxies == count)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(format!("there never were {count} proxies")),
    }
}

/// A pod comes, goes, and is there after the agent or the proxy was away.
pub(crate) async fn pods_are_served_as_the_agent_says(world: &World) -> Outcome {
    let (_folder, path) = socket_path("zds.sock")?;
    let (a, b, c) = (world.pod(2, Capture::None)?, world.pod(3, Capture::None)?, world.pod(4, Capture::None)?);
    // The proxy is there first, and waits.
    let mut proxy = Proxy::start(&path);
    let server = Server::bind(&path).map_err(|error| error.to_string())?;
    ensure!(Server::bind(&path).is_err(), "a second agent took the socket of the first");
    served(1, &server).await?;
    proxy.until("an empty snapshot", Status::is_ready).await?;

    for (uid, pod) in [("a", &a), ("b", &b)] {
        ensure!(!is_served(pod).await, "`{uid}` is served before it is added");
        server.add(uid, info(uid), namespace(pod)?).await.map_err(|error| error.to_string())?;
        ensure!(is_served(pod).await, "`{uid}` is added and not served");
    }
    server.remove("a").await;
    ensure!(!is_served(&a).await, "`a` is removed and still served");

    // The agent ends and comes back with other pods. Meanwhile serving goes on.
    drop(server);
    proxy.until("without agent", |status| !status.connected).await?;
    ensure!(is_served(&b).await, "without an agent `b` is not served any more");
    let server = bind_again(&path).await?;
    server.keep("b").map_err(|error| error.to_string())?;
    let missing = server.add("c", info("c"), namespace(&c)?).await;
    ensure!(missing == Err(AddError::NoProxy) || missing.is_ok(), "{missing:?}");
    proxy.until("with an agent again", Status::is_ready).await?;
    ensure!(is_served(&b).await && is_served(&c).await, "a kept and a new pod are served after a reconnect");
    ensure!(proxy.pods() == ["b", "c"], "{:?}", proxy.pods());
    drop(server);
    proxy.until("without agent", |status| !status.connected).await?;
    let server = bind_again(&path).await?;
    proxy.until("an empty snapshot", |status| status.is_ready() && status.running == 0).await?;
    ensure!(!is_served(&b).await, "a pod that the new snapshot doesn't name is still served");
    drop(server);
    proxy.kill().await;
    Ok(())
}

/// A port that is taken: the agent hears why, and the pod is served once it is free.
pub(crate) async fn a_pod_that_cannot_be_served_is_tried_again(world: &World) -> Outcome {
    let (_folder, path) = socket_path("zds.sock")?;
    let pod = world.pod(2, Capture::None)?;
    let taken =
        pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(|error| error.to_string())?;
    taken.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into()).map_err(|error| error.to_string())?;
    taken.listen(1).map_err(|error| error.to_string())?;
    let server = Server::bind(&path).map_err(|error| error.to_string())?;
    let mut proxy = Proxy::start(&path);
    served(1, &server).await?;
    let refused = server.add("a", info("a"), namespace(&pod)?).await;
    ensure!(matches!(&refused, Err(AddError::Refused(reason)) if reason.contains("in use")), "{refused:?}");
    proxy.until("pending", |status| status.pending == 1 && !status.is_ready()).await?;
    drop(taken);
    proxy.until("served by itself", |status| status.is_ready() && status.running == 1).await?;
    ensure!(server.add("a", info("a"), namespace(&pod)?).await.is_ok(), "asking again isn't how to find out");
    ensure!(proxy.status.borrow().started == 1, "asking again started it again");
    proxy.kill().await;
    Ok(())
}

/// An upgrade: the newest proxy gets what is new, all of them hear what is gone, and the older one takes over again when
/// the newer one fails.
pub(crate) async fn two_proxies_are_told_side_by_side(world: &World) -> Outcome {
    let (_folder, path) = socket_path("zds.sock")?;
    let (a, b) = (world.pod(2, Capture::None)?, world.pod(3, Capture::None)?);
    let server = Server::bind(&path).map_err(|error| error.to_string())?;
    let mut old = Proxy::start(&path);
    served(1, &server).await?;
    server.add("a", info("a"), namespace(&a)?).await.map_err(|error| error.to_string())?;
    let mut new = Proxy::start(&path);
    served(2, &server).await?;
    ensure!((old.pods(), new.pods()) == (vec!["a".to_owned()], vec!["a".to_owned()]), "both serve what there was");
    server.add("b", info("b"), namespace(&b)?).await.map_err(|error| error.to_string())?;
    ensure!((old.pods().len(), new.pods().len()) == (1, 2), "{:?} {:?}", old.pods(), new.pods());
    server.remove("a").await;
    ensure!(old.pods().is_empty() && new.pods() == ["b"], "{:?} {:?}", old.pods(), new.pods());
    new.until("one pod", |status| status.running == 1).await?;
    new.kill().await;
    old.until("takes over", |status| status.running == 1).await?;
    ensure!(old.pods() == ["b"], "{:?}", old.pods());
    ensure!(is_served(&b).await, "nobody serves `b`");
    old.kill().await;
    Ok(())
}

/// An agent of few words, for what the real one never says.
struct RawAgent {
    listener: OwnedFd,
}

impl RawAgent {
    fn bind(path: &Path) -> io::Result<Self> {
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&listener, 4)?;
        Ok(Self { listener })
    }

    /// Accepts a proxy, sends it these messages; what it answers to each.
    fn converse(&self, messages: &[(&[u8], Option<&OwnedFd>)]) -> io::Result<Vec<Vec<u8>>> {
        let socket = rustix::net::accept(&self.listener)?;
        let timeout = Some(Duration::from_secs(5));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, timeout)?;
        let receive = || {
            let mut buffer = vec![0; 4096];
            let (length, _) = rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty())?;
            buffer.truncate(length);
            Ok::<_, io::Error>(buffer)
        };
        let mut answers = vec![receive()?];
        for (message, file) in messages {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
            let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
            if !files.is_empty() {
                ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&files));
            }
            let parts = [io::IoSlice::new(message)];
            rustix::net::sendmsg(&socket, &parts, &mut ancillary, rustix::net::SendFlags::NOSIGNAL)?;
            answers.push(receive()?);
        }
        Ok(answers)
    }
}

const HELLO: &[u8] = b"\x08\x01";
const ACK: &[u8] = b"\x0a\x00";
const SNAPSHOT: &[u8] = b"\x1a\x00";
const ADD: &[u8] = b"\x0a\x13\x0a\x01u\x12\x0e\x0a\x01n\x12\x04test\x1a\x03sas";

/// What ends the proxy, what ends only the connection, and what is fine; by the bytes.
pub(crate) async fn a_badly_behaved_agent_is_refused(world: &World) -> Outcome {
    let pod = world.pod(2, Capture::None)?;
    let network = namespace(&pod)?;
    let file = OwnedFd::from(std::fs::File::open("/proc/self/status").map_err(|error| error.to_string())?);
    let long = vec![0x0a; 1_025];
    type Messages<'a> = Vec<(&'a [u8], Option<&'a OwnedFd>)>;
    let cases: [(&str, Messages<'_>, bool); 7] = [
        ("second snapshot", vec![(SNAPSHOT, None), (SNAPSHOT, None)], true),
        ("keep after the snapshot", vec![(SNAPSHOT, None), (b"\x2a\x03\x0a\x01u", None)], true),
        ("add without info", vec![(b"\x0a\x03\x0a\x01u", Some(&network))], true),
        ("add without namespace", vec![(ADD, None)], false),
        ("add with another file", vec![(ADD, Some(&file))], false),
        ("no message", vec![(b"\xff\xff", None)], false),
        ("too long", vec![(&long, None)], false),
    ];
    for (name, messages, ends) in cases {
        let (_folder, path) = socket_path("zds.sock")?;
        let agent = Arc::new(RawAgent::bind(&path).map_err(|error| error.to_string())?);
        let mut proxy = Proxy::start(&path);
        let talk = |messages: &Messages<'_>| {
            let copied: Vec<(Vec<u8>, Option<OwnedFd>)> = messages
                .iter()
                .map(|(bytes, file)| (bytes.to_vec(), file.map(|file| file.try_clone().expect("a copy"))))
                .collect();
            let agent = Arc::clone(&agent);
            tokio::task::spawn_blocking(move || {
                let borrowed: Vec<_> = copied.iter().map(|(bytes, file)| (&bytes[..], file.as_ref())).collect();
                agent.converse(&borrowed)
            })
        };
        let answers =
            talk(&messages).await.map_err(|error| error.to_string())?.map_err(|error| format!("{name}: {error}"))?;
        ensure!(answers.first().map(Vec::as_slice) == Some(HELLO), "{name}: {answers:?}");
        let last = answers.last().map(Vec::as_slice).unwrap_or_default();
        ensure!(last.len() > ACK.len() && last[0] == 0x0a, "{name}: the agent wasn't told: {answers:?}");
        if ends {
            let error =
                tokio::time::timeout(PATIENCE, &mut proxy.task).await.map_err(|_| format!("{name}: goes on"))?;
            ensure!(matches!(error, Ok(ProtocolError::Agent { .. })), "{name}: {error:?}");
        } else {
            let fine: Messages<'_> = vec![(ADD, Some(&network)), (ADD, Some(&network)), (SNAPSHOT, None)];
            let answers =
                talk(&fine).await.map_err(|error| error.to_string())?.map_err(|error| format!("{name}: {error}"))?;
            ensure!(answers == [HELLO, ACK, ACK, ACK], "{name}: {answers:?}");
            ensure!(proxy.pods() == ["u"], "{name}: {:?}", proxy.pods());
            proxy.until("one start", |status| status.started == 1).await?;
            proxy.kill().await;
        }
    }
    Ok(())
}

/// The agent that comes back. The one before it lets go of the socket when its tasks have ended, which nothing awaits.
async fn bind_again(path: &Path) -> Result<Server, String> {
    let mut waited = Duration::ZERO;
    loop {
        match Server::bind(path) {
            Ok(server) => return Ok(server),
            Err(error) if waited >= Duration::from_secs(5) => return Err(error.to_string()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        waited += Duration::from_millis(10);
    }
}
