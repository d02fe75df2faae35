//! `/logging`: log levels at run time.

use ambit_telemetry::log::LevelControl;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::server::text;

/// Shows the log levels after changing them as the query asks (`level=debug`, `level=access=debug,dns=off`, `reset`).
#[must_use]
pub fn logging(levels: &LevelControl, query: &str) -> Response<Full<Bytes>> {
    let (level, reset) = level_request(query);
    let base = if reset { levels.initial().clone() } else { (*levels.current()).clone() };
    match level.filter(|level| !level.is_empty()).map(|level| base.extended(&level)) {
        None if !reset => {}
        None => levels.reset(),
        Some(Ok(changed)) => levels.set(changed),
        Some(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("failed to set new level: {error}\n")),
    }
    text(StatusCode::OK, format!("current log level is {}\n", levels.current()))
}

/// The last `level`, and whether there is a `reset`.
#[must_use]
pub fn level_request(query: &str) -> (Option<String>, bool) {
    let (mut level, mut reset) = (None, false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "level" => level = Some(value.into_owned()),
            "reset" => reset = true,
            _ => {}
        }
    }
    (level, reset)
}
