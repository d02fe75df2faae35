//! A decision record as a line for people.

use std::fmt;

use crate::{DecisionRecord, Enforcer};

/// Prints a record as one line: verdict, who, what, and why.
#[derive(Debug)]
pub struct Line<'a>(pub &'a DecisionRecord);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        write!(f, "{:<5} ", record.verdict)?;
        let source = &record.source;
        match (&source.workload, &source.identity, &source.address) {
            (Some(workload), _, _) => f.write_str(workload)?,
            (None, Some(identity), _) => write!(f, "{}/{}", identity.namespace(), identity.service_account())?,
            (None, None, Some(address)) => write!(f, "{address}")?,
            (None, None, None) => f.write_str("unknown")?,
        }
        f.write_str(" -> ")?;
        let destination = &record.destination;
        match (destination.service.as_ref().or(destination.workload.as_ref()), &destination.address) {
            (Some(name), Some(address)) => write!(f, "{name}:{}", address.port())?,
            (Some(name), None) => f.write_str(name)?,
            (None, Some(address)) => write!(f, "{address}")?,
            (None, None) => f.write_str("unknown")?,
        }
        match (&record.method, &record.path) {
            (Some(method), Some(path)) => write!(f, "  {method} {}", path.escape_debug())?,
            _ => write!(f, "  {}", record.protocol)?,
        }
        if let Some(status) = record.status {
            write!(f, " {status}")?;
        }
        write!(f, "  [{}] {}", Place(&record.enforcer), record.reason)
    }
}

struct Place<'a>(&'a Enforcer);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Enforcer::ZtunnelOutbound => f.write_str("ztunnel outbound"),
            Enforcer::ZtunnelInbound => f.write_str("ztunnel inbound"),
            Enforcer::WaypointGuard => f.write_str("waypoint guard"),
            Enforcer::Waypoint { name } => write!(f, "waypoint {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_policy::Decision;

    use super::Line;
    use crate::{DecisionRecord, Destination, Enforcer, Source};

    fn record() -> DecisionRecord {
        let decision = Decision::deny("no ALLOW rule matches");
        let source = Source {
            workload: Some("a/client".into()),
            identity: "spiffe://cluster.local/ns/a/sa/b".parse().ok(),
            address: "10.244.0.5:41000".parse().ok(),
        };
        let destination =
            Destination { service: Some("a/mlflow".into()), workload: None, address: "10.96.0.9:5000".parse().ok() };
        let enforcer = Enforcer::Waypoint { name: "a/w".into() };
        let mut record = DecisionRecord::new(enforcer, source, destination, "HTTP/1.1", &decision);
        record.method = Some("GET".into());
        record.path = Some("/v1/\u{1b}[31m".to_owned());
        record.status = Some(403);
        record
    }

    #[test]
    fn a_line_says_who_what_and_why_and_defuses_control_characters() {
        let line = Line(&record()).to_string();
        assert_eq!(
            line,
            "deny  a/client -> a/mlflow:5000  GET /v1/\\u{1b}[31m 403  [waypoint a/w] no ALLOW rule matches"
        );
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let json = serde_json::to_value(record()).expect("a record is serialisable");
        assert_eq!(json["enforcer"], serde_json::json!({"kind": "waypoint", "name": "a/w"}));
        assert_eq!(json["source"]["identity"], "spiffe://cluster.local/ns/a/sa/b");
        assert_eq!(json["destination"]["address"], "10.96.0.9:5000");
        assert_eq!((json["verdict"].as_str(), json["status"].as_u64()), (Some("deny"), Some(403)));
        let time = json["time"].as_str().expect("a time");
        assert!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
}
