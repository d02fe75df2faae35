//! The access log `access.jsonl` of a mesh.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::Place;

/// A record may be written a moment after the answer that it is about has come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a record like this and returns the last one.
pub fn wait_for(place: &Place, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = fs::read_to_string(place.path("access.jsonl")).expect("the access log");
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(found) = records.filter(|record| wanted(record)).last() {
            return found;
        }
        assert!(Instant::now() < deadline, "no such record in {log}");
        thread::sleep(Duration::from_millis(20));
    }
}
