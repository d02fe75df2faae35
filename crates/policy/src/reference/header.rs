//! Conditions on headers.

use super::matching::string;
use crate::{
    HttpVersion, RequestFacts,
    headers::{Joined, joined},
};

/// Whether one value matches a header, its name in lower case.
pub(super) fn matches(
    name: &str,
    value: &str,
    request: &RequestFacts<'_>,
    path: &str,
    host: &str,
    leans_in: bool,
) -> bool {
    let query = request.path.find('?').map_or("", |at| &request.path[at..]);
    let lines: Vec<String> = match name {
        "x-forwarded-client-cert" | "x-envoy-internal" => return false,
        "host" | ":authority" => vec![host.to_owned()],
        ":method" => vec![request.method.to_owned()],
        ":path" => vec![format!("{path}{query}")],
        ":scheme" => vec!["http".to_owned()],
        _ => {
            let mut lines = Vec::new();
            request.headers.lines(name, &mut |line| lines.push(String::from_utf8_lossy(line).into_owned()));
            if request.version == HttpVersion::Http1 {
                lines.iter_mut().for_each(|line| *line = line.trim_matches([' ', '\t', '\n', '\r', '\x0c']).to_owned());
            }
            lines
        }
    };
    let by_line = lines.iter().any(|line| string(value, line));
    match (name, lines.len()) {
        ("x-request-id", 0) => value == "*",
        ("x-forwarded-proto", 0) => string(value, "http"),
        (_, 0 | 1) => by_line,
        _ => {
            let lines: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
            let as_one = string(value, &lines.join(if name == "cookie" { "; " } else { "," }));
            match joined(name) {
                _ if leans_in => by_line || as_one,
                Joined::Never => by_line,
                Joined::Always => as_one,
                Joined::Perhaps => by_line && as_one,
                Joined::ByVersion => {
                    if request.version == HttpVersion::Http2 {
                        as_one
                    } else {
                        by_line
                    }
                }
            }
        }
    }
}
