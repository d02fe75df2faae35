//! The access log of a waypoint in Envoy's default text format, as Istio sets it (`spec/waypoint.md` 5.7).
//!
//! Unlike Envoy's, a line never shows a query (it may hold secrets), nor a path that the client claims in
//! `x-envoy-original-path`, and what a client sent can neither end its quotes nor the line.

use std::fmt::{self, Display, Write};

use ambit_policy::Verdict;

use crate::{DecisionRecord, Exchange};

/// A record of a waypoint that has an [`Exchange`], as one line without its newline.
#[derive(Clone, Copy, Debug)]
pub struct EnvoyLine<'r> {
    record: &'r DecisionRecord,
    exchange: &'r Exchange,
}

/// Bytes without what could end quotes or a line.
struct Quoted<'a>(Option<&'a str>);

/// A value, or `-`.
struct OrDash<T>(Option<T>);

// === impl EnvoyLine ===

impl<'r> EnvoyLine<'r> {
    /// Nothing for a record that isn't about something that has ended.
    #[must_use]
    pub fn of(record: &'r DecisionRecord) -> Option<Self> {
        Some(Self { record, exchange: record.exchange.as_deref()? })
    }

    fn is_http(&self) -> bool {
        self.record.method.is_some()
    }

    fn details(&self) -> String {
        let DecisionRecord { verdict, policy, rule, status, .. } = self.record;
        if *verdict == Verdict::Deny {
            return match (policy, rule, self.exchange.flags, status) {
                (_, _, "UAEX", _) => "ext_authz_denied".to_owned(),
                (_, _, "RL", _) => "local_rate_limited".to_owned(),
                (_, _, "FI" | "DI,FI", _) => "fault_filter_abort".to_owned(),
                (_, _, "DPE", _) => "http1.codec_error".to_owned(),
                (Some(policy), rule, ..) => {
                    let rule = rule.map(|rule| format!("-rule[{rule}]")).unwrap_or_default();
                    let (namespace, name) = (&policy.namespace, &policy.name);
                    format!("rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]{rule}]")
                }
                (None, _, _, Some(401)) => "jwt_authn_access_denied".to_owned(),
                (None, _, _, Some(400 | 414 | 426 | 431 | 503)) => "direct_response".to_owned(),
                (None, ..) => "rbac_access_denied_matched_policy[none]".to_owned(),
            };
        }
        let details = match self.exchange.flags.split(',').next().unwrap_or_default() {
            "UH" => "no_healthy_upstream",
            "UF" => "upstream_reset_before_response_started{remote_connection_failure}",
            "UC" if self.exchange.is_answered => "upstream_reset_after_response_started{connection_termination}",
            "UC" => "upstream_reset_before_response_started{connection_termination}",
            "UR" if self.exchange.is_answered => "upstream_reset_after_response_started{remote_reset}",
            "UR" => "upstream_reset_before_response_started{remote_reset}",
            "UPE" if self.exchange.is_answered => "upstream_reset_after_response_started{protocol_error}",
            "UPE" => "upstream_reset_before_response_started{protocol_error}",
            "UT" => "response_timeout",
            "UO" => "upstream_reset_before_response_started{overflow}",
            "NR" => "route_not_found",
            "DC" => "downstream_remote_disconnect",
            "RL" => "local_rate_limited",
            "FI" | "DI" if self.exchange.flags.ends_with("FI") => "fault_filter_abort",
            _ if self.exchange.is_answered => "via_upstream",
            _ => "direct_response",
        };
        details.to_owned()
    }

    fn cluster(&self) -> String {
        let protocol = if self.is_http() { "http" } else { "tcp" };
        match (&self.exchange.hostname, self.record.destination.address) {
            (Some(hostname), Some(address)) => format!("inbound-vip|{}|{protocol}|{hostname}", address.port()),
            _ => "encap".to_owned(),
        }
    }
}

impl Display for EnvoyLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, exchange } = self;
        let format =
            time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let time = time::OffsetDateTime::from(record.time).format(format).map_err(|_| fmt::Error)?;
        let protocol = if self.is_http() { record.protocol } else { "-" };
        write!(f, "[{time}] \"{} ", Bare(record.method.as_deref()))?;
        write!(f, "{} {protocol}\" ", Bare(record.path.as_deref()))?;
        let details = self.details();
        let (of_response, of_connection) = match (self.is_http(), record.verdict) {
            (true, _) => (details.as_str(), "-"),
            (false, Verdict::Deny) => ("-", details.as_str()),
            (false, _) => ("-", "-"),
        };
        let failure = exchange.flags.starts_with("UF").then_some(&*record.reason);
        write!(f, "{} {} ", record.status.unwrap_or(0), exchange.flags)?;
        write!(f, "{} {} \"{}\" ", Bare(Some(of_response)), Bare(Some(of_connection)), Quoted(failure))?;
        let service_ms = record.durations.upstream_us.filter(|_| exchange.is_answered).map(|micros| micros / 1000);
        write!(f, "{} {} ", exchange.received_bytes, exchange.sent_bytes)?;
        write!(f, "{} {} ", exchange.duration.as_millis(), OrDash(service_ms))?;
        let quoted = [&exchange.forwarded_for, &exchange.user_agent, &exchange.request_id, &exchange.authority];
        for text in quoted {
            write!(f, "\"{}\" ", Quoted(text.as_deref()))?;
        }
        write!(f, "\"{}\" {} - ", OrDash(exchange.endpoint), Bare(Some(&self.cluster())))?;
        write!(f, "{} {} ", OrDash(record.destination.address), OrDash(record.source.address))?;
        let route = exchange.route.as_deref().or(self.is_http().then_some("default"));
        write!(f, "{} {}", Bare(exchange.server_name.as_deref()), Bare(route))
    }
}

/// A value outside of quotes: without white space, too.
struct Bare<'a>(Option<&'a str>);

fn escaped(f: &mut fmt::Formatter<'_>, byte: u8) -> fmt::Result {
    match byte {
        b'"' | b'\\' => write!(f, "\\{}", char::from(byte)),
        b' '..=b'~' => f.write_char(char::from(byte)),
        _ => write!(f, "\\x{byte:02x}"),
    }
}

// === impl Quoted ===

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.filter(|text| !text.is_empty()) {
            Some(text) => text.bytes().try_for_each(|byte| escaped(f, byte)),
            None => f.write_char('-'),
        }
    }
}

// === impl Bare ===

impl Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0.filter(|text| !text.is_empty()) else { return f.write_char('-') };
        for byte in text.bytes() {
            match byte {
                b' ' => f.write_str("\\x20")?,
                _ => escaped(f, byte)?,
            }
        }
        Ok(())
    }
}

// === impl OrDash ===

impl<T: Display> Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_char('-'),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use ambit_policy::{Decision, PolicyName};

    use super::*;
    use crate::{Destination, Enforcer, Source};

    fn record(decision: &Decision) -> DecisionRecord {
        let source = Source { address: "10.244.0.5:41000".parse().ok(), ..Source::default() };
        let destination = Destination { address: "10.96.0.9:5000".parse().ok(), ..Destination::default() };
        let enforcer = Enforcer::Waypoint { name: "a/w".into() };
        let mut record = DecisionRecord::new(enforcer, source, destination, "HTTP/1.1", decision);
        record.time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        record.exchange = Some(Box::new(Exchange { flags: "-", ..Exchange::default() }));
        record
    }

    fn line(record: &DecisionRecord) -> String {
        EnvoyLine::of(record).expect("it has ended").to_string()
    }

    #[test]
    fn a_request_that_was_answered_is_as_envoy_writes_it() {
        let mut record = record(&Decision { verdict: Verdict::Allow, ..Decision::deny("ok") });
        (record.method, record.path, record.status) = (Some("POST".into()), Some("/v1/traces".into()), Some(200));
        record.durations.upstream_us = Some(7_900);
        record.exchange = Some(Box::new(Exchange {
            authority: Some("mlflow:5000".into()),
            user_agent: Some("curl/8.5.0".into()),
            forwarded_for: None,
            request_id: Some("6a2b".into()),
            hostname: Some("mlflow.a.svc.cluster.local".into()),
            endpoint: "10.244.0.7:8080".parse().ok(),
            flags: "-",
            is_answered: true,
            received_bytes: 3,
            sent_bytes: 2,
            duration: Duration::from_micros(8_400),
            ..Exchange::default()
        }));
        assert_eq!(
            line(&record),
            "[2023-11-14T22:13:20.123Z] \"POST /v1/traces HTTP/1.1\" 200 - via_upstream - \"-\" 3 2 8 7 \"-\" \
             \"curl/8.5.0\" \"6a2b\" \"mlflow:5000\" \"10.244.0.7:8080\" inbound-vip|5000|http|mlflow.a.svc.cluster.local - \
             10.96.0.9:5000 10.244.0.5:41000 - default"
        );
    }

    #[test]
    fn a_denial_names_its_policy_as_envoy_does() {
        let name = PolicyName { namespace: "a".into(), name: "no-delete".into() };
        let mut denied = record(&Decision { policy: Some(name), rule: Some(2), ..Decision::deny("because") });
        (denied.method, denied.status) = (Some("DELETE".into()), Some(403));
        assert!(line(&denied).contains(" 403 - rbac_access_denied_matched_policy[ns[a]-policy[no-delete]-rule[2]] - "));
        (denied.policy, denied.rule) = (None, None);
        assert!(line(&denied).contains(" 403 - rbac_access_denied_matched_policy[none] - \"-\" 0 0 "));
        // A connection has no response: why it ended stands in the next field.
        denied.method = None;
        denied.status = None;
        let line = line(&denied);
        assert!(line.contains("\"- - -\" 0 - - rbac_access_denied_matched_policy[none] \"-\" "), "{line}");
    }

    #[test]
    fn what_a_client_sent_ends_neither_quotes_nor_lines() {
        let mut record = record(&Decision::deny("no"));
        record.method = Some("GET".into());
        record.path = Some("/a\" b\r\n".into());
        let evil = Some("x\" \"y\u{1b}[31m\nz\u{85}".to_owned());
        let texts =
            || Exchange { user_agent: evil.clone(), authority: evil.clone(), flags: "-", ..Exchange::default() };
        record.exchange = Some(Box::new(Exchange { forwarded_for: evil.clone(), request_id: evil.clone(), ..texts() }));
        let line = line(&record);
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
        let quotes = line.replace("\\\"", "").matches('"').count();
        assert_eq!(quotes, 14, "seven quoted fields in {line}");
    }
}
