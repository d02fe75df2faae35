//! The rows of the table.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    Check,
    example::Example,
    mesh::{Client, Mark, Mesh},
};
use crate::command::{Failure, client::Answer};

const SERVICE: &str = "mlflow:5000";
const QUALIFIED: &str = "mlflow.kagenti-system:5000";
const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];
const UI: &[&str] = &["-n", "kagenti-system", "--sa", "kagenti-ui"];
const INTRUDER: &[&str] = &["-n", "kagenti-system", "--sa", "intruder"];
const STRANGER: &[&str] = &["-n", "other-team", "--sa", "otel-collector"];
const OUTSIDER: &[&str] = &["-n", "legacy", "--sa", "legacy-app"];

/// The text that a denied client gets.
const DENIED: &str = "RBAC: access denied";
/// How soon an edited policy must be in force.
const EDIT_LIMIT: Duration = Duration::from_millis(100);

/// Runs the checks in order and hands over each row as it is known.
pub fn run(mesh: &Mesh, example: &Example, report: &mut dyn FnMut(Check)) -> Result<(), Failure> {
    identities(mesh, report)?;
    around_the_waypoint(mesh, report)?;
    http2(mesh, report)?;
    edit(mesh, example, report)?;
    without_waypoint(mesh, report)
}

fn identities(mesh: &Mesh, report: &mut dyn FnMut(Check)) -> Result<(), Failure> {
    let mut collector = mesh.client(COLLECTOR, SERVICE, false)?;
    for (method, path, status) in [
        ("POST", "/v1/traces", 200),
        ("GET", "/v1/traces", 403),
        ("POST", "/v1/traces/", 403),
        ("POST", "/V1/traces", 403),
        ("POST", "/v1/traces/x", 403),
        ("POST", "/v1/traces?x=1", 200),
        ("POST", "/a/../v1/traces", 200),
        ("POST", "//v1/traces", 403),
        ("POST", "/v1%2Ftraces", 403),
        ("POST", "/v1/traces;x=1", 403),
        ("POST", "/v1/traces/..%2fadmin", 403),
    ] {
        report(http(mesh, &mut collector, "otel-collector", method, path, status)?);
    }
    drop(collector);
    let mut ui = mesh.client(UI, SERVICE, false)?;
    for (method, path, status) in [("GET", "/anything", 200), ("POST", "/api", 200), ("DELETE", "/", 403)] {
        report(http(mesh, &mut ui, "kagenti-ui", method, path, status)?);
    }
    drop(ui);
    let mut intruder = mesh.client(INTRUDER, SERVICE, false)?;
    report(http(mesh, &mut intruder, "intruder, same namespace", "POST", "/v1/traces", 403)?);
    let mut stranger = mesh.client(STRANGER, QUALIFIED, false)?;
    report(http(mesh, &mut stranger, "otel-collector of other-team", "POST", "/v1/traces", 403)?);
    Ok(())
}

fn around_the_waypoint(mesh: &Mesh, report: &mut dyn FnMut(Check)) -> Result<(), Failure> {
    let pod = mesh
        .pods()?
        .into_iter()
        .find(|pod| pod["namespace"] == "kagenti-system" && pod["service_account"] == "mlflow")
        .ok_or_else(|| Failure::new("the mesh has no mlflow pod"))?;
    let address = format!("{}:5000", pod["ip"].as_str().unwrap_or_default());
    for (who, run) in [("a pod outside the mesh", OUTSIDER), ("otel-collector", COLLECTOR)] {
        let before = mesh.requests_served();
        let mark = mesh.mark();
        let answer = mesh.client(run, &address, false)?.ask("POST", "/v1/traces")?;
        let record = mesh.record(mark, |record| record["enforcer"]["kind"] == "waypoint-guard");
        let served = mesh.requests_served() - before;
        report(refusal(&format!("{who}: POST /v1/traces to mlflow's pod IP"), &answer, record.as_ref(), served));
    }
    Ok(())
}

fn http2(mesh: &Mesh, report: &mut dyn FnMut(Check)) -> Result<(), Failure> {
    let mut collector = mesh.client(COLLECTOR, SERVICE, true)?;
    report(http(mesh, &mut collector, "otel-collector, HTTP/2", "POST", "/v1/traces", 200)?);
    let mark = mesh.mark();
    let answer = collector.ask("GET", "/v1/traces")?;
    let mut check = judge(mesh, mark, "otel-collector, HTTP/2, same connection: GET /v1/traces", &answer, 403);
    check.ok &= answer.reused;
    report(check);
    Ok(())
}

fn edit(mesh: &Mesh, example: &Example, report: &mut dyn FnMut(Check)) -> Result<(), Failure> {
    let mut collector = mesh.client(COLLECTOR, SERVICE, false)?;
    report(http(mesh, &mut collector, "otel-collector, before the edit", "POST", "/v2", 403)?);
    example.allow_v2()?;
    let start = Instant::now();
    let (answer, took, mark) = loop {
        let mark = mesh.mark();
        let answer = collector.ask("POST", "/v2")?;
        let took = start.elapsed();
        if answer.status == Some(200) || took > EDIT_LIMIT * 20 || !answer.reused {
            break (answer, took, mark);
        }
    };
    let record = mesh.record(mark, |record| record["path"] == "/v2" && record["verdict"] == "allow");
    report(Check {
        name: "otel-collector, /v2 allowed by an edit meanwhile: POST /v2".to_owned(),
        expected: format!("200 within {} ms, same connection", EDIT_LIMIT.as_millis()),
        got: format!(
            "{} after {} ms, {}",
            shown(&answer),
            took.as_millis(),
            if answer.reused { "same connection" } else { "new connection" }
        ),
        reason: reason(record.as_ref()),
        ok: answer.status == Some(200) && answer.reused && took <= EDIT_LIMIT,
    });
    Ok(())
}

fn without_waypoint(mesh: &Mesh, report: &mut dyn FnMut(Check)) -> Result<(), Failure> {
    let waypoint = mesh
        .pods()?
        .into_iter()
        .find(|pod| pod["waypoint"] == "mlflow-waypoint")
        .ok_or_else(|| Failure::new("the mesh has no waypoint pod"))?;
    let name = format!("kagenti-system/{}", waypoint["name"].as_str().unwrap_or_default());
    mesh.stop(&name)?;
    for (who, run) in [("otel-collector", COLLECTOR), ("kagenti-ui", UI)] {
        let before = mesh.requests_served();
        let mark = mesh.mark();
        let answer = mesh.client(run, SERVICE, false)?.ask("POST", "/v1/traces")?;
        let record = mesh.record(mark, |record| record["verdict"] == "deny");
        let served = mesh.requests_served() - before;
        report(refusal(&format!("{who}, waypoint stopped: POST /v1/traces"), &answer, record.as_ref(), served));
    }
    Ok(())
}

fn http(mesh: &Mesh, client: &mut Client, who: &str, method: &str, path: &str, status: u16) -> Result<Check, Failure> {
    let mark = mesh.mark();
    let answer = client.ask(method, path)?;
    Ok(judge(mesh, mark, &format!("{who}: {method} {path}"), &answer, status))
}

/// An answer must have the status, a denial the right body, and the record must agree with both.
fn judge(mesh: &Mesh, mark: Mark, name: &str, answer: &Answer, status: u16) -> Check {
    let record = mesh.record(mark, |record| record["enforcer"]["kind"] == "waypoint" && record["status"] == status);
    let verdict = if status == 403 { "deny" } else { "allow" };
    let body_fits = status != 403 || answer.body == DENIED;
    let recorded = record.as_ref().is_some_and(|record| record["verdict"] == verdict);
    Check {
        name: name.to_owned(),
        expected: if status == 403 { format!("403 `{DENIED}`") } else { status.to_string() },
        got: shown(answer),
        reason: reason(record.as_ref()),
        ok: answer.status == Some(status) && body_fits && recorded,
    }
}

/// There must be no answer, nothing may have reached the server, and a record must say why.
fn refusal(name: &str, answer: &Answer, record: Option<&Value>, served: usize) -> Check {
    Check {
        name: name.to_owned(),
        expected: "refused, 0 requests reach mlflow".to_owned(),
        got: format!("{}, {served} requests reached mlflow", shown(answer)),
        reason: reason(record),
        // By a 403 of the node proxy that says why, or by a reset.
        ok: (answer.status == Some(403) || (answer.status.is_none() && answer.error.is_some()))
            && served == 0
            && record.is_some(),
    }
}

fn shown(answer: &Answer) -> String {
    match (answer.status, &answer.error) {
        (Some(403), _) => format!("403 `{}`", answer.body.trim_end()),
        (Some(status), _) => status.to_string(),
        (None, Some(error)) => format!("refused ({error})"),
        (None, None) => "nothing".to_owned(),
    }
}

fn reason(record: Option<&Value>) -> String {
    let Some(record) = record else { return "no decision record came".to_owned() };
    let text = record["reason"].as_str().unwrap_or_default();
    match record["policy"].as_str() {
        Some(policy) if !text.contains(policy) => format!("{text} [{policy}, rule {}]", record["rule"]),
        _ => text.to_owned(),
    }
}
