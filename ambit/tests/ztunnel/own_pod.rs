//! The pods that proxies themselves run in (`spec/ztunnel.md` 1).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Outcome, PATIENCE, UNSET, World, text};

/// The client and the server's proxy, whose metrics everybody of the mesh may fetch, and whose readiness nobody.
const MESH: &str = r#"{
  "workloads": [
    {"uid": "test//Pod/test/client", "name": "client", "namespace": "test", "trustDomain": "cluster.local",
     "serviceAccount": "client", "workloadIps": ["10.244.0.2"], "protocol": "HBONE", "node": "client", "services": {}},
    {"uid": "test//Pod/istio-system/ztunnel-x", "name": "ztunnel-x", "namespace": "istio-system",
     "trustDomain": "cluster.local", "serviceAccount": "ztunnel", "workloadIps": ["ADDRESS"], "protocol": "HBONE",
     "node": "server", "services": {}}
  ],
  "services": [],
  "policies": [{"name": "metrics", "namespace": "istio-system", "scope": "Namespace", "action": "Allow",
                "dryRun": false, "rules": [[[{"principals": [!Exact "cluster.local/ns/test/sa/client"]}],
                                            [{"destinationPorts": [15020]}]]]}]
}"#;

/// Through the client's proxy, by mutual TLS and under policy.
pub(crate) async fn a_proxys_own_metrics_are_fetched_by_tunnel(world: &World) -> Outcome {
    let (client_pod, server_pod) = (world.proxy_pod()?, world.proxy_pod()?);
    let number = server_pod.name().rsplit('-').next().unwrap_or_default().to_owned();
    let address = format!("10.244.0.{number}");
    let mesh = MESH.replace("ADDRESS", &address);
    let local = [("LOCAL_XDS_PATH", UNSET), ("LOCAL_XDS", mesh.as_str())];
    let own = [("POD_NAME", "ztunnel-x"), ("POD_NAMESPACE", "istio-system"), ("SERVICE_ACCOUNT", "ztunnel")];
    let mut client = world.start_in(&client_pod, &world.client, &local)?;
    let mut server = world.start_in(&server_pod, &world.server, &[&local[..], &own].concat())?;
    world.client.serve_pod().await?;
    client.ready(PATIENCE).await?;
    server.ready(PATIENCE).await?;
    let fetch = async |port: u16, path: &str| {
        let address: SocketAddr = format!("{address}:{port}").parse().map_err(text)?;
        let mut stream = world.client.connect(address).await.map_err(text)?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(text)?;
        Ok::<_, String>(answer)
    };
    let metrics = tokio::time::timeout(PATIENCE, fetch(15_020, "/metrics")).await.map_err(text)?;
    let metrics = metrics.map_err(|why| format!("{why}\n{}\n{}", client.log(), server.log()))?;
    if !metrics.contains("istio_build") {
        return Err(format!("no metrics in `{metrics}`"));
    }
    // The proxy knows who asked, so there was a tunnel: it has counted the connection by itself.
    let again = tokio::time::timeout(PATIENCE, fetch(15_020, "/metrics")).await.map_err(text)??;
    let line = again.lines().find(|line| {
        line.starts_with("istio_tcp_connections_opened_total")
            && line.contains("sa/client")
            && line.contains("mutual_tls")
    });
    if line.is_none() {
        return Err(format!("no connection from the client is counted in `{again}`"));
    }
    let refused = tokio::time::timeout(PATIENCE, fetch(15_021, "/healthz/ready")).await.map_err(text)?;
    if refused.as_ref().is_ok_and(|answer| answer.contains("200 OK")) {
        return Err(format!("no policy allows `{refused:?}`"));
    }
    world.client.agent.remove("client").await;
    Ok(())
}
