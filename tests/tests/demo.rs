//! The main job, end to end, as every user.
#![forbid(unsafe_code)]

use ambit_tests::{each_user, finish};

#[test]
fn the_demo_passes_every_check() {
    each_user(|place| {
        let output = finish(place.ambit().args(["demo", "--output", "json"]));
        let report: serde_json::Value =
            serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let failed: Vec<_> =
            report["checks"].as_array().expect("checks").iter().filter(|check| check["ok"] != true).collect();
        assert!(failed.is_empty(), "as {}: {failed:#?}\n{}", place.user(), output.stderr);
        assert_eq!(output.code, 0);
        assert_eq!(report["failed"], 0);
        assert!(report["passed"].as_u64().expect("a number") >= 24, "{report}");
    });
}
