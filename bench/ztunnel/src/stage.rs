//! Two pods and the proxies between them, made afresh for every measurement: what one left behind (connections in
//! TIME_WAIT, warm tunnels, grown buffers) must not change the next.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use ambit_node::{Capture, Node};

use crate::{
    agent::Workload,
    configuration::{CLIENT_NAMESPACE, CLIENT_NODE, SERVER_NAMESPACE, SERVER_NODE},
    control::ControlPlane,
    load::{ECHO_PORT, SINK_PORT, Server},
    pods::{CLIENT, Pod, Ports, SERVER},
    proxy::{Contender, Proxy, Start},
};

/// Addresses of the nodes' proxies.
const CLIENT_PROXY: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 1);
const SERVER_PROXY: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 2);

/// What stages are made with.
pub(crate) struct Director<'a> {
    pub(crate) node: &'a Node,
    pub(crate) runtime: &'a tokio::runtime::Runtime,
    /// What the proxies are told, and by whom.
    pub(crate) control: &'a ControlPlane,
    /// Folder of sockets.
    pub(crate) run: &'a Path,
    /// Folder of the proxies' logs.
    pub(crate) logs: &'a Path,
}

/// How a stage is made.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    /// The proxies of the client's and the server's node; nothing for a direct connection.
    pub(crate) proxies: Option<[&'a Contender; 2]>,
    pub(crate) ports: Ports,
    /// The server is in the mesh as well, with a proxy of its own.
    pub(crate) server_captured: bool,
    /// Further variables for the proxies.
    pub(crate) environment: &'a [(&'a str, &'a str)],
}

/// Two pods, and a proxy for each.
pub(crate) struct Stage {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) proxies: Vec<Proxy>,
}

// === impl Director ===

impl Director<'_> {
    /// Makes the pods and proxies, runs `act` while the server serves, and takes everything away again.
    pub(crate) fn play<T: Send>(
        &self,
        scene: Scene<'_>,
        act: impl FnOnce(&Stage, &Server) -> io::Result<T>,
    ) -> Result<T, String> {
        let stage = self.set(scene)?;
        let server = Server::default();
        let result = stage.server.run_beside(|beside| server.run(beside), || act(&stage, &server));
        self.strike(stage)?;
        result.map_err(|error| error.to_string())
    }

    /// Makes the pods and proxies.
    pub(crate) fn set(&self, scene: Scene<'_>) -> Result<Stage, String> {
        let capture = |captured| if captured { Capture::Mesh } else { Capture::None };
        let client = Pod::new(self.node, "client", CLIENT, capture(scene.proxies.is_some()))?;
        let server_captured = scene.proxies.is_some() && scene.server_captured;
        let server = Pod::new(self.node, "server", SERVER, capture(server_captured))?;
        let widened = client.widen_ports().and_then(|()| match scene.ports {
            Ports::Wide => server.widen_ports(),
            Ports::WideForClient => Ok(()),
        });
        widened.map_err(|error| format!("local ports: {error}"))?;
        let mut proxies = Vec::new();
        if let Some(contenders) = scene.proxies {
            let mut environment = self.control.environment();
            environment.extend(scene.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let ends = [
                (CLIENT_NODE, CLIENT_PROXY, "client", CLIENT_NAMESPACE, &client),
                (SERVER_NODE, SERVER_PROXY, "server", SERVER_NAMESPACE, &server),
            ];
            let ends = ends.into_iter().take(if server_captured { 2 } else { 1 });
            for (contender, (node, ip, name, namespace, pod)) in contenders.into_iter().zip(ends) {
                proxies.push(Proxy::start(
                    self.node,
                    &Start {
                        contender,
                        node,
                        ip,
                        workloads: &[Workload { name, namespace, network: pod.network() }],
                        environment: &environment,
                        run: self.run,
                        logs: self.logs,
                    },
                )?);
            }
        }
        Ok(Stage { client, server, proxies })
    }

    /// Takes everything away again.
    pub(crate) fn strike(&self, stage: Stage) -> Result<(), String> {
        let Stage { client, server, proxies } = stage;
        let mut pods: Vec<Pod> = proxies.into_iter().map(Proxy::stop).collect();
        pods.extend([client, server]);
        pods.into_iter().try_for_each(|pod| self.runtime.block_on(pod.remove()))
    }
}

// === impl Stage ===

impl Stage {
    /// The server's echo, by the pod's address.
    pub(crate) fn echo() -> SocketAddrV4 {
        SocketAddrV4::new(SERVER, ECHO_PORT)
    }

    /// The server's sink, by the pod's address.
    pub(crate) fn sink() -> SocketAddrV4 {
        SocketAddrV4::new(SERVER, SINK_PORT)
    }

    /// Processor seconds of both proxies.
    pub(crate) fn processor_seconds(&self) -> io::Result<f64> {
        self.proxies.iter().map(Proxy::processor_seconds).sum()
    }

    /// Resident memory of both proxies in KiB.
    pub(crate) fn resident_kib(&self) -> io::Result<f64> {
        self.proxies.iter().map(Proxy::resident_kib).sum()
    }

    /// Runs `work` in the client's network; gives its result and the proxies' processor seconds meanwhile.
    pub(crate) fn as_client<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<(T, f64)> {
        let before = self.processor_seconds()?;
        let result = self.client.run(work)?;
        Ok((result, self.processor_seconds()? - before))
    }
}
