//! The control socket's meaning: `ambit run`, `forward`, `status` and `stop`.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use ambit_control_plane::local::{Handle, PodCommand, PodKind, PodPhase, PodPlan, SessionRequest};
use ambit_mesh::{Store, view::ServiceKey};
use ambit_node::{
    PodNamespaces,
    control::{ControlConnection, ControlServer, ForwardRequest, Request, Response, RunRequest, VERSION},
};
use ambit_ztunnel::Ztunnel;
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    pods::{PodState, Pods},
    print_line,
};

/// How long a pod may take to start or stop before the command hears that it didn't.
const POD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the control socket failed to accept, so that a lack of descriptors doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections of one forward at a time; the next is refused.
const MAX_FORWARDED: usize = 1_024;

/// What commands can ask for.
pub struct Sessions {
    control_plane: Handle,
    pods: Arc<Pods>,
    ztunnel: Arc<Ztunnel>,
    store: Arc<Store>,
    stop: CancellationToken,
}

/// Answers commands until the mesh stops.
pub async fn serve(server: ControlServer, sessions: Arc<Sessions>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = server.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                let (sessions, stop) = (Arc::clone(&sessions), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = sessions.answer(connection) => {}
                    }
                });
            }
            Err(error) => {
                print_line(&format!("the control socket doesn't accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

// === impl Sessions ===

impl Sessions {
    /// What commands can ask of this mesh.
    pub fn new(
        control_plane: Handle,
        pods: Arc<Pods>,
        ztunnel: Arc<Ztunnel>,
        store: Arc<Store>,
        stop: CancellationToken,
    ) -> Self {
        Self { control_plane, pods, ztunnel, store, stop }
    }

    async fn answer(&self, connection: ControlConnection) {
        let message = match connection.receive().await {
            Ok(Some((Request::Run(request), _))) => self.run(&connection, request).await.err(),
            Ok(Some((Request::Forward(request), _))) => self.forward(&connection, request).await.err(),
            Ok(Some((Request::Status, _))) => {
                let status = Response::Status(self.status().await);
                // A command that is gone needs no answer, here and below.
                let _ = connection.send(&status, &[]).await;
                None
            }
            Ok(Some((Request::StopPod { pod }, _))) => match self.stop_pod(&pod).await {
                Ok(message) => {
                    let _ = connection.send(&Response::Ready { message: Some(message) }, &[]).await;
                    None
                }
                Err(message) => Some(message),
            },
            Ok(Some((Request::Stop, _))) => {
                let _ = connection.send(&Response::Ready { message: None }, &[]).await;
                self.stop.cancel();
                None
            }
            Ok(Some((Request::Connection { .. }, _))) => Some("no forward was asked for on this connection".to_owned()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(message) = message {
            let _ = connection.send(&Response::Error { message }, &[]).await;
        }
    }

    /// A pod for a program, as long as the command's connection.
    async fn run(&self, connection: &ControlConnection, request: RunRequest) -> Result<(), String> {
        check_version(request.version)?;
        let session = SessionRequest {
            namespace: request.namespace,
            name: request.name,
            service_account: request.service_account,
            stand_in: request.labels.is_empty() && request.mesh,
            labels: request.labels,
            captured: request.mesh,
        };
        let plan = self.control_plane.add_session(session).await.map_err(|error| error.to_string())?;
        let result = match self.start(&plan).await {
            Ok(namespaces) => {
                let sent = connection.send_session(&plan.namespace, &namespaces).await;
                drop(namespaces);
                if sent.is_ok() {
                    connection.closed().await;
                }
                Ok(())
            }
            Err(reason) => Err(reason),
        };
        self.end(&plan).await;
        result
    }

    /// A pod that enters the mesh for connections which the command accepts.
    async fn forward(&self, connection: &ControlConnection, request: ForwardRequest) -> Result<(), String> {
        check_version(request.version)?;
        let destination = self.destination(&request)?;
        let (namespace, service_account) =
            request.identity.unwrap_or_else(|| (request.namespace.clone(), "default".to_owned()));
        let session = SessionRequest { namespace, service_account, captured: true, ..SessionRequest::default() };
        let plan = self.control_plane.add_session(session).await.map_err(|error| error.to_string())?;
        let result = if plan.captured {
            self.carry(connection, &plan, destination).await
        } else {
            Err(format!(
                "namespace `{}` isn't in the mesh, so nothing can enter it with that identity; label it \
                 `istio.io/dataplane-mode: ambient`, or choose another with `--as`",
                plan.namespace
            ))
        };
        self.end(&plan).await;
        result
    }

    async fn carry(
        &self,
        connection: &ControlConnection,
        plan: &PodPlan,
        destination: SocketAddr,
    ) -> Result<(), String> {
        // Kept, so that the pod lasts as long as the forward.
        let _namespaces = self.start(plan).await?;
        let message = format!("enters the mesh as {} for {destination}", plan.identity);
        connection.send(&Response::Ready { message: Some(message) }, &[]).await.map_err(|error| error.to_string())?;
        let places = Arc::new(Semaphore::new(MAX_FORWARDED));
        let open = TaskTracker::new();
        let ended = CancellationToken::new();
        let _end_all = ended.clone().drop_guard();
        while let Ok(Some((request, fds))) = connection.receive().await {
            if !matches!(request, Request::Connection { .. }) {
                return Err("a forward carries connections only".to_owned());
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let Some(stream) = fds.into_iter().next().and_then(stream) else { continue };
            let (ztunnel, uid, ended) = (Arc::clone(&self.ztunnel), Arc::clone(&plan.uid), ended.clone());
            open.spawn(async move {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = ztunnel.serve_outbound(&uid, stream, destination) => {}
                }
                drop(place);
            });
        }
        Ok(())
    }

    /// The service's virtual address.
    fn destination(&self, request: &ForwardRequest) -> Result<SocketAddr, String> {
        let ForwardRequest { namespace, service, port, .. } = request;
        let hostname = format!("{service}.{namespace}.svc.cluster.local");
        let key = ServiceKey { namespace: namespace.as_str().into(), hostname: hostname.into() };
        let view = self.store.load();
        let found = view.service(&key).ok_or_else(|| format!("there is no service `{namespace}/{service}`"))?;
        if !found.ports.contains_key(port) {
            let ports: Vec<_> = found.ports.keys().map(ToString::to_string).collect();
            return Err(format!("service `{namespace}/{service}` has no port {port}; it has {}", ports.join(", ")));
        }
        match found.vips.first() {
            Some(vip) => Ok(SocketAddr::new(*vip, *port)),
            None => Err(format!("service `{namespace}/{service}` is headless, so it has no address to forward to")),
        }
    }

    async fn start(&self, plan: &PodPlan) -> Result<Arc<PodNamespaces>, String> {
        self.pods.carry_out(PodCommand::Add(Arc::new(plan.clone())));
        let mut state = self.pods.state(&plan.uid).ok_or("the mesh is shutting down")?;
        let wanted = |state: &PodState| !matches!(state, PodState::Starting);
        let state = tokio::time::timeout(POD_TIMEOUT, state.wait_for(wanted))
            .await
            .map_err(|_| "the pod didn't start in time".to_owned())?
            .map_err(|_| "the pod's task ended".to_owned())?
            .clone();
        match state {
            PodState::Running(namespaces) => Ok(namespaces),
            PodState::Failed(reason) => Err(reason),
            PodState::Starting | PodState::Stopping | PodState::Stopped => Err("the pod was stopped".to_owned()),
        }
    }

    async fn end(&self, plan: &PodPlan) {
        self.control_plane.remove_session(&plan.uid).await;
        self.pods.carry_out(PodCommand::Remove { uid: Arc::clone(&plan.uid) });
    }

    async fn stop_pod(&self, pod: &str) -> Result<String, String> {
        let status = self.control_plane.status().await;
        let found = status.pods.iter().find(|known| format!("{}/{}", known.namespace, known.name) == pod);
        let found = found.ok_or_else(|| format!("there is no pod `{pod}`; `ambit status` lists them"))?;
        let state = self.pods.state(&found.uid);
        self.control_plane.stop_pod(&found.uid).await.map_err(|error| error.to_string())?;
        if let Some(mut state) = state {
            let gone = state.wait_for(|state| matches!(state, PodState::Stopped | PodState::Failed(_)));
            // Its task may have ended, which is as good; a slow end goes on by itself.
            let _ = tokio::time::timeout(POD_TIMEOUT, gone).await;
        }
        Ok(format!("pod {pod} is stopped"))
    }

    async fn status(&self) -> serde_json::Value {
        let status = self.control_plane.status().await;
        let pods = status.pods.iter().map(|pod| {
            let (kind, waypoint) = match &pod.kind {
                PodKind::App => ("app", None),
                PodKind::Waypoint { gateway } => ("waypoint", Some(gateway)),
                PodKind::Session { .. } => ("session", None),
            };
            let state = match (pod.phase, pod.ready) {
                (PodPhase::Running, true) => "ready",
                (PodPhase::Running, false) => "not ready",
                (PodPhase::Waiting, _) => "waits for `ambit run`",
                (PodPhase::Stopped, _) => "stopped",
            };
            serde_json::json!({
                "namespace": pod.namespace, "name": pod.name, "ip": pod.ip.to_string(), "service_account": pod.service_account,
                "kind": kind, "waypoint": waypoint, "state": state, "ready": pod.ready, "captured": pod.captured,
            })
        });
        let services = status.services.iter().map(|service| {
            serde_json::json!({
                "namespace": service.namespace, "name": service.name, "vip": service.vip.map(|vip| vip.to_string()),
                "ports": service.ports, "waypoint": service.waypoint, "endpoints": service.endpoints, "ready": service.ready,
            })
        });
        serde_json::json!({
            "pods": pods.collect::<Vec<_>>(), "services": services.collect::<Vec<_>>(), "policies": status.policies,
        })
    }
}

fn check_version(version: u32) -> Result<(), String> {
    if version == VERSION {
        return Ok(());
    }
    Err(format!(
        "this mesh speaks version {VERSION} of the control protocol, the command {version}; use one build for both"
    ))
}

fn stream(fd: OwnedFd) -> Option<TcpStream> {
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true).ok()?;
    TcpStream::from_std(stream).ok()
}
