//! Clients of the control plane, over gRPC on loopback.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_identity::{BoxFuture, SpiffeId};
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Endpoint, Roots, channel,
    client::{Client, NodeIdentity, Options},
    discovery::Node,
    server::{Authorize, Denied, Peer, Resources, Server},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything to reach a client.
const PATIENCE: Duration = Duration::from_secs(120);

/// Resources by type URL and name.
pub type Held = BTreeMap<(String, String), Vec<u8>>;

/// Lets everybody in: this measures something else.
struct Open;

/// A server, and who listens.
pub struct Wire {
    address: SocketAddr,
    stop: CancellationToken,
}

/// What one client has been told.
pub struct Listener {
    /// Everything that it holds.
    pub held: Arc<Mutex<Held>>,
    /// Bytes of resources so far, and how often it was told something.
    told: watch::Receiver<(usize, u64)>,
}

// === impl Open ===

impl Authorize for Open {
    fn discovery<'a>(&'a self, _: &'a Peer, _: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn certificate<'a>(&'a self, _: &'a Peer, _: Option<&'a SpiffeId>) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        Box::pin(std::future::ready(Err(Denied::new("nobody is signed for here"))))
    }
}

// === impl Wire ===

impl Wire {
    /// Serves these resources.
    pub async fn serve(resources: &Arc<Resources>) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let stop = CancellationToken::new();
        let server = Server::new(Arc::new(Open)).with_resources(Arc::clone(resources));
        tokio::spawn(server.serve(listener, stop.clone()));
        Ok(Self { address, stop })
    }

    /// One more client. With `keep` it holds what it is told; otherwise it counts only.
    pub fn listen(&self, number: usize, keep: bool) -> Result<Listener, String> {
        let address = format!("http://{}", self.address).parse().map_err(|error| format!("{error}"))?;
        let node = NodeIdentity {
            pod: format!("ztunnel-{number}"),
            namespace: "istio-system".to_owned(),
            node: format!("node-{number}"),
            ..NodeIdentity::default()
        };
        let (sink, mut pushes) = channel::channel();
        let options = Options::new(Endpoint::new(address, Roots::System), node);
        let (client, handle) = Client::new(options, sink).map_err(|error| error.to_string())?;
        let stop = self.stop.clone();
        tokio::spawn(async move {
            client.run(stop).await;
            drop(handle);
        });
        let held = Arc::new(Mutex::new(BTreeMap::new()));
        let (tells, told) = watch::channel((0, 0));
        let (store, mut bytes, mut count) = (Arc::clone(&held), 0, 0);
        tokio::spawn(async move {
            while let Some(push) = pushes.next().await {
                for DeltaResponse { type_url, resources, removed } in &push.responses {
                    let mut held = store.lock().unwrap_or_else(PoisonError::into_inner);
                    for resource in resources {
                        bytes += resource.value.len();
                        if keep {
                            held.insert((type_url.clone(), resource.name.clone()), resource.value.to_vec());
                        }
                    }
                    for name in removed {
                        held.remove(&(type_url.clone(), name.clone()));
                    }
                }
                count += 1;
                push.acknowledge(Ok(()));
                tells.send_replace((bytes, count));
            }
        });
        Ok(Listener { held, told })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

// === impl Listener ===

impl Listener {
    /// Bytes of resources so far.
    pub fn bytes(&self) -> usize {
        self.told.borrow().0
    }

    /// Waits until it has that many bytes.
    pub async fn until(&mut self, bytes: usize) -> Result<(), String> {
        let waiting = async { self.told.wait_for(|(has, _)| *has >= bytes).await.is_ok() };
        let came = tokio::time::timeout(PATIENCE, waiting).await;
        match came {
            Ok(true) => Ok(()),
            Ok(false) => Err("the client has ended".to_owned()),
            Err(_) => Err(format!("the client has {} of {bytes} bytes", self.bytes())),
        }
    }

    /// Waits until it holds exactly this, and gives how long that took; nothing if it doesn't come to that.
    pub async fn until_equal(&self, wanted: &Held) -> Option<Duration> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            if *self.held.lock().unwrap_or_else(PoisonError::into_inner) == *wanted {
                return Some(start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }
}

/// Bytes of what node proxies are told in these.
pub fn bytes(deltas: &[DeltaResponse]) -> usize {
    let told = deltas.iter().filter(|delta| [ADDRESS_TYPE, AUTHORIZATION_TYPE].contains(&delta.type_url.as_str()));
    told.flat_map(|delta| &delta.resources).map(|resource| resource.value.len()).sum()
}
