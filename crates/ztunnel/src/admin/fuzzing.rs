//! Entries for fuzzing; nothing here is for use.

use ambit_telemetry::log::Levels;

use super::routes::level_request;

/// Takes any text as the query of `/logging`: it is levels or it isn't, and what levels print is what they read.
///
/// # Panics
/// When that doesn't hold, which is what fuzzing looks for.
pub fn logging(query: &str) {
    for text in [Some(query.to_owned()), level_request(query).0].into_iter().flatten() {
        if let Ok(levels) = text.parse::<Levels>() {
            assert_eq!(levels.to_string().parse(), Ok(levels));
        }
    }
}
