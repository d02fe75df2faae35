//! The access log: a connection as one line, with the fields of Istio's node proxy (`spec/ztunnel.md` 15) and, for a
//! refusal, what refused it.

use std::fmt::{self, Write};

use serde_json::{Map, Value};
use tracing::Level;

use crate::{
    DecisionRecord, Enforcer, Records,
    limits::MAX_VALUE_BYTES,
    log::{LevelControl, LogFormat, LogWriter, Timestamp},
};

/// Target of the lines: `access=off` silences them.
pub const ACCESS_TARGET: &str = "access";

/// Writes records as lines.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: LogWriter,
    levels: LevelControl,
    format: LogFormat,
}

/// A record as one line of the access log, without the newline.
#[derive(Clone, Copy, Debug)]
pub struct AccessLine<'r> {
    record: &'r DecisionRecord,
    format: LogFormat,
}

/// One field's value.
enum Field {
    /// Shown as it is.
    Bare(String),
    /// Shown in quotes.
    Text(String),
    Number(u64),
}

type Fields = Vec<(&'static str, Field)>;

// === impl AccessLog ===

impl AccessLog {
    /// Writes to this writer what these levels want.
    #[must_use]
    pub fn new(writer: LogWriter, levels: LevelControl, format: LogFormat) -> Self {
        Self { writer, levels, format }
    }

    /// Writes a record, if its level is wanted. Never waits.
    pub fn write(&self, record: &DecisionRecord) {
        if self.wants(record) {
            let mut text = AccessLine::new(record, self.format).to_string();
            text.push('\n');
            self.writer.line(text.into_bytes());
        }
    }

    /// True if this record has a line.
    #[must_use]
    pub fn wants(&self, record: &DecisionRecord) -> bool {
        self.levels.is_enabled(ACCESS_TARGET, AccessLine::new(record, self.format).level())
    }

    /// True if connections that open have a line too.
    #[must_use]
    pub fn wants_openings(&self) -> bool {
        self.levels.is_enabled(ACCESS_TARGET, Level::DEBUG)
    }

    /// Writes records until every proxy is gone.
    pub async fn run(self, mut records: Records) {
        while let Some(record) = records.next().await {
            self.write(&record);
        }
    }
}

// === impl AccessLine ===

impl<'r> AccessLine<'r> {
    /// This record in this form.
    #[must_use]
    pub fn new(record: &'r DecisionRecord, format: LogFormat) -> Self {
        Self { record, format }
    }

    /// How much the line matters: a failure more than a success, an opening least.
    #[must_use]
    pub fn level(&self) -> Level {
        match &self.record.connection {
            Some(connection) if connection.opened => Level::DEBUG,
            Some(_) if self.error().is_some() => Level::ERROR,
            None if !self.is_allowed() => Level::WARN,
            _ => Level::INFO,
        }
    }

    fn message(&self) -> &'static str {
        match &self.record.connection {
            Some(connection) if connection.opened => "connection opened",
            None if !self.is_allowed() => "connection failed",
            _ => "connection complete",
        }
    }

    fn is_allowed(&self) -> bool {
        self.record.verdict == ambit_policy::Verdict::Allow
    }

    fn is_outbound(&self) -> bool {
        self.record.enforcer == Enforcer::ZtunnelOutbound
    }

    fn error(&self) -> Option<String> {
        let explicit = self.record.connection.as_ref().and_then(|connection| connection.error.as_deref());
        match (explicit, self.is_allowed()) {
            (Some(error), _) => Some(error.to_owned()),
            (None, true) => None,
            (None, false) if self.record.policy.is_some() => Some("connection refused by policy".to_owned()),
            (None, false) => Some(self.record.reason.to_string()),
        }
    }

    /// All fields in their order; what isn't known is left out.
    fn fields(&self) -> Fields {
        let DecisionRecord { source, destination, connection, .. } = self.record;
        let connection = connection.as_deref();
        let (source_namespace, source_name) = split(source.workload.as_deref());
        let (namespace, name) = split(destination.workload.as_deref());
        let address = connection.and_then(|connection| connection.address).or(destination.address);
        let own = |text: Option<&str>| text.map(|text| Field::Text(text.to_owned()));
        let bare = |value: Option<String>| value.map(Field::Bare);
        let cluster = |cluster: Option<&std::sync::Arc<str>>| own(cluster.map(|cluster| &**cluster));
        let direction = if self.is_outbound() { "outbound" } else { "inbound" };
        let mut fields = Fields::new();
        let mut put = |name, value: Option<Field>| fields.extend(value.map(|value| (name, value)));
        put("src.addr", bare(source.address.map(|address| address.to_string())));
        put("src.workload", own(source_name));
        put("src.namespace", own(source_namespace));
        put("src.identity", source.identity.as_ref().map(|id| Field::Text(id.to_string())));
        put("src.cluster", cluster(connection.and_then(|c| c.source_cluster.as_ref())));
        put("dst.addr", bare(address.map(|address| address.to_string())));
        put("dst.hbone_addr", bare(connection.and_then(|c| c.hbone_address.as_ref()).map(ToString::to_string)));
        let hostname = connection.and_then(|c| c.service_hostname.as_deref());
        put("dst.service", own(hostname.or(destination.service.as_deref())));
        put("dst.workload", own(name));
        put("dst.namespace", own(namespace));
        let identity = connection.and_then(|c| c.destination_identity.as_ref());
        put("dst.identity", identity.map(|id| Field::Text(id.to_string())));
        put("dst.cluster", cluster(connection.and_then(|c| c.destination_cluster.as_ref())));
        put("direction", own(Some(direction)));
        if let Some(ended) = connection.filter(|connection| !connection.opened) {
            // A client's side logs what the client sends as sent; metrics call that received.
            let (sent, received) = match self.is_outbound() {
                true => (ended.received_bytes, ended.sent_bytes),
                false => (ended.sent_bytes, ended.received_bytes),
            };
            put("bytes_sent", Some(Field::Number(sent)));
            put("bytes_recv", Some(Field::Number(received)));
            put("duration", Some(Field::Text(format!("{}ms", ended.duration_ms))));
        }
        put("error", self.error().map(Field::Text));
        if !self.is_allowed() {
            put("policy", self.record.policy.as_ref().map(|policy| Field::Text(policy.to_string())));
            put("rule", self.record.rule.map(|rule| Field::Number(rule.into())));
            put("reason", own(Some(&self.record.reason)));
        }
        fields
    }
}

impl fmt::Display for AccessLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level().as_str().to_ascii_lowercase();
        let time = Timestamp(self.record.time);
        match self.format {
            LogFormat::Plain => {
                write!(f, "{time}\t{level}\t{ACCESS_TARGET}\t{}\t", self.message())?;
                for (place, (name, value)) in self.fields().iter().enumerate() {
                    if place > 0 {
                        f.write_char(' ')?;
                    }
                    match value {
                        Field::Bare(text) => write!(f, "{name}={}", crate::log::escaped(text))?,
                        Field::Text(text) => write!(f, "{name}={:?}", cut(text))?,
                        Field::Number(number) => write!(f, "{name}={number}")?,
                    }
                }
                Ok(())
            }
            LogFormat::Json => {
                let mut object = Map::new();
                object.insert("level".to_owned(), level.into());
                object.insert("time".to_owned(), time.to_string().into());
                object.insert("scope".to_owned(), ACCESS_TARGET.into());
                object.insert("message".to_owned(), self.message().into());
                for (name, value) in self.fields() {
                    let value = match value {
                        Field::Bare(text) | Field::Text(text) => Value::from(cut(&text)),
                        Field::Number(number) => number.into(),
                    };
                    object.insert(name.to_owned(), value);
                }
                write!(f, "{}", Value::Object(object))
            }
        }
    }
}

/// `namespace/name` in two.
fn split(qualified: Option<&str>) -> (Option<&str>, Option<&str>) {
    match qualified.and_then(|text| text.split_once('/')) {
        Some((namespace, name)) => (Some(namespace), Some(name)),
        None => (None, qualified),
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_VALUE_BYTES)]
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use ambit_policy::{Decision, PolicyName, Verdict};

    use super::*;
    use crate::{ConnectionFacts, Destination, Source};

    fn record(enforcer: Enforcer, decision: &Decision, connection: Option<ConnectionFacts>) -> DecisionRecord {
        let source = Source {
            workload: Some("ns/client".into()),
            identity: "spiffe://cluster.local/ns/ns/sa/client".parse().ok(),
            address: "10.244.0.5:41000".parse().ok(),
        };
        let destination = Destination {
            service: Some("ns/server".into()),
            workload: Some("ns/server-1".into()),
            address: "10.96.0.9:80".parse().ok(),
        };
        let mut record = DecisionRecord::new(enforcer, source, destination, "TCP", decision);
        record.time = std::time::SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        record.connection = connection.map(Box::new);
        record
    }

    fn facts() -> ConnectionFacts {
        ConnectionFacts {
            source_cluster: Some("c1".into()),
            destination_cluster: Some("c2".into()),
            address: "10.244.0.9:15008".parse().ok(),
            hbone_address: Some("10.244.0.9:8080".into()),
            service_hostname: Some("server.ns.svc.cluster.local".into()),
            destination_identity: "spiffe://cluster.local/ns/ns/sa/server".parse().ok(),
            sent_bytes: 358,
            received_bytes: 84,
            duration_ms: 15,
            ..ConnectionFacts::default()
        }
    }

    fn allow() -> Decision {
        Decision { verdict: Verdict::Allow, ..Decision::deny("allowed") }
    }

    const ALL: &str = "src.addr=10.244.0.5:41000 src.workload=\"client\" src.namespace=\"ns\" \
        src.identity=\"spiffe://cluster.local/ns/ns/sa/client\" src.cluster=\"c1\" dst.addr=10.244.0.9:15008 \
        dst.hbone_addr=10.244.0.9:8080 dst.service=\"server.ns.svc.cluster.local\" dst.workload=\"server-1\" \
        dst.namespace=\"ns\" dst.identity=\"spiffe://cluster.local/ns/ns/sa/server\" dst.cluster=\"c2\" ";

    #[test]
    fn lines_have_istios_fields_in_their_order() {
        let policy = Decision {
            policy: Some(PolicyName { namespace: "ns".into(), name: "only-web".into() }),
            rule: Some(2),
            ..Decision::deny("no rule matches \"x\"\n")
        };
        let reset = ConnectionFacts { error: Some("peer reset".into()), ..facts() };
        let opened = ConnectionFacts { opened: true, ..facts() };
        let out = Enforcer::ZtunnelOutbound;
        let into = Enforcer::ZtunnelInbound;
        let cases = [
            (
                record(out.clone(), &allow(), Some(facts())),
                "info",
                "connection complete",
                format!("{ALL}direction=\"outbound\" bytes_sent=84 bytes_recv=358 duration=\"15ms\""),
            ),
            (
                record(into.clone(), &allow(), Some(facts())),
                "info",
                "connection complete",
                format!("{ALL}direction=\"inbound\" bytes_sent=358 bytes_recv=84 duration=\"15ms\""),
            ),
            (
                record(out.clone(), &allow(), Some(reset)),
                "error",
                "connection complete",
                format!(
                    "{ALL}direction=\"outbound\" bytes_sent=84 bytes_recv=358 duration=\"15ms\" error=\"peer reset\""
                ),
            ),
            (
                record(into.clone(), &policy, Some(facts())),
                "error",
                "connection complete",
                format!(
                    "{ALL}direction=\"inbound\" bytes_sent=358 bytes_recv=84 duration=\"15ms\" \
                     error=\"connection refused by policy\" policy=\"ns/only-web\" rule=2 \
                     reason=\"no rule matches \\\"x\\\"\\n\""
                ),
            ),
            (
                record(out.clone(), &allow(), Some(opened)),
                "debug",
                "connection opened",
                format!("{ALL}direction=\"outbound\""),
            ),
        ];
        for (record, level, message, fields) in cases {
            let line = AccessLine::new(&record, LogFormat::Plain).to_string();
            assert_eq!(line, format!("2023-11-14T22:13:20.123456Z\t{level}\taccess\t{message}\t{fields}"));
        }
    }

    #[test]
    fn a_refusal_before_anything_is_known_says_what_there_is() {
        let mut early = record(Enforcer::ZtunnelInbound, &Decision::deny("too many connections"), None);
        (early.source, early.destination) = (Source::default(), Destination::default());
        early.source.address = "10.0.0.1:5".parse().ok();
        early.destination.address = "10.0.0.2:6".parse().ok();
        let line = AccessLine::new(&early, LogFormat::Plain).to_string();
        let expected = "\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:5 dst.addr=10.0.0.2:6 direction=\"inbound\" \
                        error=\"too many connections\" reason=\"too many connections\"";
        assert_eq!(line.split_at(27).1, expected);
    }

    #[test]
    fn json_has_the_same_fields() {
        let record = record(Enforcer::ZtunnelOutbound, &allow(), Some(facts()));
        let line = AccessLine::new(&record, LogFormat::Json).to_string();
        let json: Value = serde_json::from_str(&line).expect("an object");
        let expected = serde_json::json!({
            "level": "info", "time": "2023-11-14T22:13:20.123456Z", "scope": "access",
            "message": "connection complete", "src.addr": "10.244.0.5:41000", "src.workload": "client",
            "src.namespace": "ns", "src.identity": "spiffe://cluster.local/ns/ns/sa/client", "src.cluster": "c1",
            "dst.addr": "10.244.0.9:15008", "dst.hbone_addr": "10.244.0.9:8080",
            "dst.service": "server.ns.svc.cluster.local", "dst.workload": "server-1", "dst.namespace": "ns",
            "dst.identity": "spiffe://cluster.local/ns/ns/sa/server", "dst.cluster": "c2", "direction": "outbound",
            "bytes_sent": 84, "bytes_recv": 358, "duration": "15ms",
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn levels_choose_what_is_written() {
        use std::sync::Mutex;
        #[derive(Clone, Default)]
        struct Memory(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Memory {
            fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("not poisoned").extend_from_slice(text);
                Ok(text.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let complete = record(Enforcer::ZtunnelOutbound, &allow(), Some(facts()));
        let opened = ConnectionFacts { opened: true, ..facts() };
        let opened = record(Enforcer::ZtunnelOutbound, &allow(), Some(opened));
        let refused = record(Enforcer::ZtunnelOutbound, &Decision::deny("no"), None);
        for (levels, lines) in [("info", 2), ("access=debug", 3), ("access=warn", 1), ("access=off", 0), ("off", 0)] {
            let memory = Memory::default();
            let writer = LogWriter::start(memory.clone(), Arc::default()).expect("a thread");
            let levels_in_force = LevelControl::new(levels.parse().expect("levels"));
            let log = AccessLog::new(writer.clone(), levels_in_force, LogFormat::Plain);
            let records = [&complete, &opened, &refused];
            assert_eq!(records.iter().filter(|record| log.wants(record)).count(), lines, "{levels}");
            records.into_iter().for_each(|record| log.write(record));
            assert!(writer.flush(Duration::from_secs(5)));
            let written = memory.0.lock().expect("not poisoned");
            assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), lines, "{levels}");
        }
    }
}
