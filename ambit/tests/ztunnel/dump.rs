//! `/config_dump` of a running proxy, as `istioctl ztunnel-config` reads it (`spec/control-plane.md` 7.2).

use serde_json::{Value, json};

use crate::process::Ztunnel;
use crate::world::{APPLICATION, CLIENT, MESH, Outcome, SERVER, SERVICE, World, echo, exchange, text};

/// A policy that lets the client in.
const POLICY: &str = r#"{"name": "only-client", "namespace": "test", "scope": "Namespace", "action": "Allow", "dryRun": false,
    "rules": [[[{"principals": [{"Exact": "cluster.local/ns/test/sa/client"}]}]]]}"#;

/// What a proxy shows.
pub(crate) async fn dump(proxy: &Ztunnel) -> Outcome<Value> {
    let text = proxy.ask(15_000, "GET /config_dump").await.map_err(text)?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// Each column of each of istioctl's tables, from two proxies with a connection between them.
pub(crate) async fn the_dump_has_what_istioctl_shows(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let mesh = MESH.replace("\"policies\": []", &format!("\"policies\": [{POLICY}]"));
    let local = [("LOCAL_XDS", mesh.as_str()), ("LOCAL_XDS_PATH", crate::world::UNSET)];
    let (client, server) = world.start_both(&local).await?;
    let mut stream = world.client.connect(SERVICE).await.map_err(text)?;
    exchange(&mut stream).await.map_err(|error| format!("{error}\n{}\n{}", client.log(), server.log()))?;
    let (from, to) = (dump(&client).await?, dump(&server).await?);

    let keys: Vec<&str> = from.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let wanted = [
        "certificates",
        "config",
        "policies",
        "services",
        "stagedServices",
        "staticConfig",
        "version",
        "workloadState",
        "workloads",
    ];
    same("keys", &json!(keys), &json!(wanted))?;

    // workload: NAMESPACE, POD NAME, ADDRESS, NODE, WAYPOINT, PROTOCOL
    let columns = ["namespace", "name", "workloadIps", "node", "protocol"];
    let expected = json!([
        ["test", "server", [SERVER.to_string()], "server", "HBONE"],
        ["test", "client", [CLIENT.to_string()], "client", "HBONE"],
    ]);
    same("workload", &table(&from["workloads"], &columns), &expected)?;
    for workload in from["workloads"].as_array().into_iter().flatten() {
        for list in ["authorizationPolicies", "services"] {
            if !workload[list].is_array() {
                return Err(format!("`{list}` is no list: {workload:#}"));
            }
        }
    }

    // service: NAMESPACE, SERVICE NAME, SERVICE VIP, WAYPOINT, ENDPOINTS (healthy/total)
    let expected = json!([["test", "server", ["/10.96.0.50"], {"80": 8080}]]);
    same("service", &table(&from["services"], &["namespace", "name", "vips", "ports"]), &expected)?;
    let endpoint = &from["services"][0]["endpoints"]["somewhere/else/server"];
    let expected = json!({
        "workloadUid": "somewhere/else/server", "service": "test/server.test.svc.cluster.local", "port": {"80": 8080},
        "status": "Healthy",
    });
    same("endpoint", endpoint, &expected)?;

    // policy: NAMESPACE, POLICY NAME, ACTION, SCOPE
    let columns = ["namespace", "name", "action", "scope", "rules"];
    let rules = json!([[[{"principals": [{"Exact": "cluster.local/ns/test/sa/client"}]}]]]);
    let expected = json!([["test", "only-client", "Allow", "Namespace", rules]]);
    same("policy", &table(&to["policies"], &columns), &expected)?;

    // certificate: CERTIFICATE NAME, TYPE, STATUS, VALID CERT, SERIAL NUMBER, NOT AFTER, NOT BEFORE
    let certificate = &to["certificates"][0];
    same("identity", &certificate["identity"], &json!("spiffe://cluster.local/ns/test/sa/server"))?;
    same("state", &certificate["state"], &json!("Available"))?;
    for chain in ["certChain", "rootCerts"] {
        for column in ["pem", "serialNumber", "validFrom", "expirationTime"] {
            if certificate[chain][0][column].as_str().is_none_or(str::is_empty) {
                return Err(format!("`{chain}` has no `{column}`: {certificate:#}"));
            }
        }
    }

    // connections: WORKLOAD, DIRECTION, LOCAL, REMOTE, REMOTE TARGET, PROTOCOL
    for (dump, uid, here, there) in [(&from, "client", "outbound", "inbound"), (&to, "server", "inbound", "outbound")] {
        let state = &dump["workloadState"][uid];
        same("state", &state["state"], &json!("Up"))?;
        same("name", &json!([state["info"]["namespace"], state["info"]["name"]]), &json!(["test", uid]))?;
        same("other direction", &state["connections"][there], &json!([]))?;
        let connections = table(&state["connections"][here], &["protocol", "originalDst"]);
        let destination = if here == "outbound" { SERVICE.to_string() } else { APPLICATION.to_string() };
        same(here, &connections, &json!([["HBONE", destination]]))?;
        for column in ["src", "actualDst"] {
            let address = state["connections"][here][0][column].as_str().unwrap_or_default();
            if address.parse::<std::net::SocketAddr>().is_err() {
                return Err(format!("`{column}` is no address: {state:#}"));
            }
        }
    }

    let lists = ["workloads", "services", "policies"].map(|list| from["staticConfig"][list].as_array().map(Vec::len));
    same("staticConfig", &json!(lists), &json!([2, 1, 1]))?;
    same("staticConfig", &from["staticConfig"]["services"][0]["ports"], &json!({"80": 8080}))?;
    let version =
        ["version", "istioVersion", "cryptoProvider", "buildProfile"].map(|key| from["version"][key].is_string());
    same("version", &json!(version), &json!([true, true, true, true]))?;
    same("config", &json!([from["config"]["localNode"], to["config"]["localNode"]]), &json!(["client", "server"]))?;

    drop(stream);
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// These members of each entry.
fn table(entries: &Value, columns: &[&str]) -> Value {
    let row = |entry: &Value| columns.iter().map(|column| entry[column].clone()).collect::<Value>();
    entries.as_array().into_iter().flatten().map(row).collect()
}

fn same(what: &str, found: &Value, expected: &Value) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:#}, not {expected:#}")) }
}
