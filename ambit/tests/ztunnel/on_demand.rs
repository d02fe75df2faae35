//! Proxies that start with nothing and ask the control plane for what their connections need (`XDS_ON_DEMAND`).

use std::net::SocketAddr;

use ambit_hbone::Network;
use ambit_node::PodNamespaces;
use ambit_xds::{ADDRESS_TYPE, DeltaResponse};
use socket2::{Domain, Protocol, Type};
use tokio::net::TcpListener;

use crate::control_plane::{self, ControlPlane};
use crate::dump::dump;
use crate::process::Ztunnel;
use crate::world::{APPLICATION, CLIENT, MESH, Outcome, PATIENCE, SERVICE, UNSET, World, echo, exchange, text};

/// Beside what is called: somebody who isn't.
const STRANGER: &str = r#"{
  "workloads": [
    {"uid": "test//Pod/test/stranger", "name": "stranger", "namespace": "test", "trustDomain": "cluster.local",
     "serviceAccount": "stranger", "workloadIps": ["10.244.9.9"], "protocol": "HBONE", "node": "elsewhere",
     "services": {"test/other.test.svc.cluster.local": {80: 8080}}}
  ],
  "services": [
    {"name": "other", "namespace": "test", "hostname": "other.test.svc.cluster.local", "vips": ["/10.96.0.51"],
     "ports": {80: 8080}}
  ],
  "policies": []
}"#;

pub(crate) async fn proxies_that_know_nothing_ask(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let control_plane = ControlPlane::new(MESH)?;
    control_plane.apply(STRANGER)?;
    let settings = [
        ("XDS_ADDRESS", control_plane::ADDRESS),
        ("CA_ADDRESS", control_plane::ADDRESS),
        ("XDS_ON_DEMAND", "true"),
        ("ISTIO_META_DNS_CAPTURE", "false"),
        ("LOCAL_XDS_PATH", UNSET),
        ("AMBIT_INSECURE_CA_DIR", UNSET),
    ];
    let (client_pod, server_pod) = (world.proxy_pod()?, world.proxy_pod()?);
    let (clients, _servers) = (control_plane.serve_in(&client_pod)?, control_plane.serve_in(&server_pod)?);
    let mut client = world.start_in(&client_pod, &world.client, &settings)?;
    let mut server = world.start_in(&server_pod, &world.server, &settings)?;
    world.client.serve_pod().await?;
    world.server.serve_pod().await?;
    client.ready(PATIENCE).await?;
    server.ready(PATIENCE).await?;
    expect(&client, &[], "at the start").await?;

    // By the service's address; the server's proxy learns who its own pod is, under whatever uid.
    let answer = say(world, SERVICE).await.map_err(|error| blame(&error, &client, &server))?;
    ensure(answer == format!("{CLIENT} hello\n"), &answer)?;
    expect(&client, &["client", "server", "service server"], "after a connection").await?;
    let dump = dump(&server).await?;
    ensure(dump["workloadState"]["server"]["state"] == "Up", &dump["workloadState"])?;

    // An address that nobody in the mesh has is passed on once the control plane has said so.
    let outside = world.proxy_pod()?;
    let address = SocketAddr::from((outside.ip(), 8_080));
    let listener = listen(&outside, address).map_err(text)?;
    let _other = echo(listener).map_err(text)?;
    let answer = say(world, address).await.map_err(|error| blame(&error, &client, &server))?;
    ensure(answer == format!("{CLIENT} hello\n"), &answer)?;

    // What is removed isn't reached on what was known of it.
    let removed = vec!["test/server.test.svc.cluster.local".to_owned()];
    control_plane.resources.apply(&[DeltaResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        resources: Vec::new(),
        removed,
    }]);
    until(&client, &["client", "server"], "after a removal").await?;
    ensure(say(world, SERVICE).await.is_err(), "a service that is gone is reached")?;
    // It comes back, and what was believed of its address ages.
    control_plane.apply(MESH)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = say(world, SERVICE).await {
        ensure(tokio::time::Instant::now() < deadline, blame(&error, &client, &server))?;
    }

    // The exchange is counted: by type, and how streams ended.
    let resource = |name: &str| format!("{{url=\"type.googleapis.com/istio.{name}\"}} ");
    for name in ["workload.Address", "security.Authorization"] {
        counted(&client, &format!("istio_xds_message_total{}", resource(name))).await?;
        counted(&client, &format!("istio_xds_message_bytes_total{}", resource(name))).await?;
    }
    drop(clients);
    counted(&client, "istio_xds_connection_terminations_total{reason=").await?;

    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// Listens in a pod that isn't in the mesh.
fn listen(pod: &PodNamespaces, address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    TcpListener::from_std(socket.into())
}

async fn say(world: &World, address: SocketAddr) -> std::io::Result<String> {
    exchange(&mut world.client.connect(address).await?).await
}

/// Workloads, and services after them, that a proxy knows.
async fn known(proxy: &Ztunnel) -> Outcome<Vec<String>> {
    let dump = dump(proxy).await?;
    let names = |list: &str, prefix: &str| -> Vec<String> {
        let entries = dump[list].as_array().into_iter().flatten();
        entries.map(|entry| format!("{prefix}{}", entry["name"].as_str().unwrap_or_default())).collect()
    };
    let mut known = names("workloads", "");
    known.sort();
    known.extend(names("services", "service "));
    Ok(known)
}

/// Waits until there is a sample that starts so, above zero.
async fn counted(proxy: &Ztunnel, sample: &str) -> Outcome {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let metrics = proxy.ask(15_020, "GET /metrics").await.map_err(text)?;
        let mut samples = metrics.lines().filter(|line| line.starts_with(sample));
        if samples.any(|line| line.rsplit(' ').next().is_some_and(|value| value != "0")) {
            return Ok(());
        }
        ensure(tokio::time::Instant::now() < deadline, format!("no `{sample}` in {metrics}"))?;
        // Nothing tells of a change but the answer itself.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn expect(proxy: &Ztunnel, names: &[&str], when: &str) -> Outcome {
    let known = known(proxy).await?;
    ensure(known == names, format!("{when} it knows {known:?}"))
}

async fn until(proxy: &Ztunnel, names: &[&str], when: &str) -> Outcome {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = expect(proxy, names, when).await {
        ensure(tokio::time::Instant::now() < deadline, error)?;
        // Nothing tells of a change but the answer itself.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Ok(())
}

fn ensure(condition: bool, otherwise: impl std::fmt::Display) -> Outcome {
    if condition { Ok(()) } else { Err(otherwise.to_string()) }
}

fn blame(error: &std::io::Error, client: &Ztunnel, server: &Ztunnel) -> String {
    format!("{error}\nclient's proxy:\n{}\nserver's proxy:\n{}", client.log(), server.log())
}
