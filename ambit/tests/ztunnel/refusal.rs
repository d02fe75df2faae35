//! What clients that a policy refuses see, and what operators see of them: through real proxies and real capture.

use std::time::{Duration, Instant};

use ambit_node::Capture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Ztunnel;
use crate::world::{APPLICATION, MESH, Outcome, PATIENCE, SERVICE, UNSET, World, echo, exchange, text};

/// Against the client, and against whoever shows no identity.
const POLICIES: &str = r#"[
    {"name": "no-client", "namespace": "test", "scope": "Namespace", "action": "Deny", "dryRun": false,
     "rules": [[[{"principals": [{"Exact": "cluster.local/ns/test/sa/client"}]}]]]},
    {"name": "strict", "namespace": "test", "scope": "Namespace", "action": "Deny", "dryRun": false,
     "rules": [[[{"notPrincipals": [{"Presence": null}]}]]]}]"#;

/// An HTTP client gets a 403 that names the policy, by tunnel and in plaintext; another one a reset; none where it is
/// switched off. Each end's log has one line for each connection, and its metrics count them.
pub(crate) async fn refused_clients_read_why_and_both_logs_tell_of_them(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let mesh = MESH.replace("\"policies\": []", &format!("\"policies\": {POLICIES}"));
    let settings = [("LOCAL_XDS", mesh.as_str()), ("LOCAL_XDS_PATH", UNSET), ("LOG_FORMAT", "json")];
    let (client, server) = world.start_both(&settings).await?;
    let answer = ask(world.client.connect(SERVICE).await.map_err(text)?).await?;
    explained(&answer, "test/no-client")?;
    let mut other = world.client.connect(SERVICE).await.map_err(text)?;
    if exchange(&mut other).await.is_ok() {
        return Err("a refused connection went through".to_owned());
    }
    let plain = world.pod("outside", [10, 244, 0, 90].into(), Capture::None)?;
    let socket = ambit_hbone::Network::socket(&*plain.network(), socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = tokio::net::TcpSocket::from_std_stream(socket.map_err(text)?.into());
    let answer = ask(socket.connect(APPLICATION).await.map_err(text)?).await?;
    explained(&answer, "test/strict")?;

    let out = lines(&client, 2).await?;
    for line in &out {
        let told = line["error"].as_str().unwrap_or_default().contains("policy test/no-client, rule 0");
        if line["direction"] != "outbound" || line["dst.service"] != "server.test.svc.cluster.local" || !told {
            return Err(format!("the client's end says {line:#}"));
        }
    }
    let into = lines(&server, 3).await?;
    let policies: Vec<_> = into.iter().map(|line| line["policy"].as_str().unwrap_or_default()).collect();
    if policies != ["test/no-client", "test/no-client", "test/strict"] {
        return Err(format!("the server's end says {into:#?}"));
    }
    let metrics = server.ask(15_020, "GET /metrics").await.map_err(text)?;
    let failed = metrics.lines().filter(|line| line.starts_with("istio_tcp_connections_failed_total{"));
    let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
    let denied: u64 = failed.filter(|line| line.contains("response_flags=\"DENY\"")).map(count).sum();
    if denied != 3 {
        return Err(format!("{denied} connections were counted as denied: {metrics}"));
    }
    world.client.agent.remove("client").await;
    drop(client);

    let mut silent = world.start(&world.client, &[&settings[..], &[("AMBIT_EXPLAIN_REFUSALS", "false")]].concat())?;
    world.client.serve_pod().await?;
    silent.ready(PATIENCE).await?;
    if let Ok(answer) = ask(world.client.connect(SERVICE).await.map_err(text)?).await {
        return Err(format!("switched off it still answers: {answer}"));
    }
    world.client.agent.remove("client").await;
    world.server.agent.remove("server").await;
    Ok(())
}

/// Asks by HTTP; what comes until the end. A reset is an error.
async fn ask(mut stream: TcpStream) -> Outcome<String> {
    let talk = async {
        stream.write_all(b"GET /a HTTP/1.1\r\nhost: server\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    tokio::time::timeout(PATIENCE, talk).await.map_err(text)?.map_err(text)
}

fn explained(answer: &str, policy: &str) -> Outcome {
    let says = answer.starts_with("HTTP/1.1 403 ")
        && answer.contains("connection: close")
        && answer.contains(&format!("refused by ztunnel-inbound, policy {policy}, rule 0: "));
    if says { Ok(()) } else { Err(format!("the client read `{answer}`")) }
}

/// The lines of its access log, once there are so many; one more is too many.
async fn lines(proxy: &Ztunnel, count: usize) -> Outcome<Vec<serde_json::Value>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = proxy.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let access: Vec<_> = lines.filter(|line| line["scope"] == "access").collect();
        if access.len() == count {
            return Ok(access);
        }
        if access.len() > count || Instant::now() > deadline {
            return Err(format!("{} lines and not {count}: {log}", access.len()));
        }
        // Nothing tells of a change but the file itself.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
