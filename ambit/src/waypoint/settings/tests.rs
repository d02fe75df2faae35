use std::time::Duration;

use clap::Parser;

use super::*;
use crate::local::files::Room;

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    settings: Settings,
}

const USUAL: [&str; 6] =
    ["--gateway-name", "waypoint", "--pod-namespace", "kagenti-system", "--service-account", "waypoint"];

fn parse(arguments: &[&str]) -> Result<Complete, String> {
    let words = std::iter::once("waypoint").chain(arguments.iter().copied());
    let settings = Command::try_parse_from(words).map_err(|error| error.to_string())?.settings;
    let gateway = settings.who.gateway_name.clone().unwrap_or_default();
    settings.check(gateway, BTreeMap::new()).map_err(|error| error.to_string())
}

fn usual(more: &[&str]) -> Complete {
    parse(&[&USUAL, more].concat()).unwrap_or_else(|error| panic!("{more:?}: {error}"))
}

#[test]
fn a_pod_of_a_cluster_needs_three_names() {
    let complete = usual(&[]);
    assert_eq!(complete.identity.to_string(), "spiffe://cluster.local/ns/kagenti-system/sa/waypoint");
    assert_eq!((&*complete.namespace, &*complete.gateway), ("kagenti-system", "waypoint"));
    let Settings { who, draining, operations, traffic, .. } = &complete.settings;
    assert_eq!((who.cluster().as_str(), who.network().as_str()), ("Kubernetes", ""));
    assert_eq!((operations.admin_port(), operations.stats_port(), operations.readiness_port), (15_000, 15_020, 15_021));
    assert_eq!(draining.deadline(), Duration::from_secs(5));
    assert_eq!(traffic.access_log, AccessLog::Denials);
    assert_eq!((traffic.workers(3), traffic.port_reuse), (3, true));
}

#[test]
fn what_is_missing_is_named_with_the_place_it_comes_from() {
    for (without, names) in [
        ("--pod-namespace", ["POD_NAMESPACE", "metadata.namespace"]),
        ("--service-account", ["SERVICE_ACCOUNT", "spec.serviceAccountName"]),
        ("--gateway-name", ["GATEWAY_NAME", "Gateway"]),
    ] {
        let pairs = USUAL.chunks(2).filter(|pair| pair[0] != without);
        let error = parse(&pairs.flatten().copied().collect::<Vec<_>>()).expect_err(without);
        assert!(names.iter().all(|name| error.contains(name)), "{without}: {error}");
    }
    for (flag, value, name) in [
        ("--xds-address", "", "XDS_ADDRESS"),
        ("--ca-address", "", "CA_ADDRESS"),
        ("--trust-domain", "a/b", "TRUST_DOMAIN"),
    ] {
        let error = parse(&[&USUAL[..], &[flag, value]].concat()).expect_err(flag);
        assert!(error.contains(name), "{flag}: {error}");
    }
}

#[test]
fn malformed_values_end_the_start_and_are_named() {
    for (flag, value) in [
        ("--instance-ip", "10.0.0"),
        ("--listen-address", "10.0.0.1:15008"),
        ("--worker-threads", "150%"),
        ("--max-connections", "0"),
        ("--max-tunnels", "x"),
        ("--drain-delay", "soon"),
        ("--access-log", "all"),
        ("--secret-ttl", "a day"),
        ("--compliance-policy", "fips"),
        ("--log-format", "xml"),
        ("--connection-termination-deadline", ""),
        ("--port-reuse", "yes"),
    ] {
        let error = parse(&[&USUAL[..], &[flag, value]].concat()).expect_err(flag);
        assert!(error.contains(flag), "{flag}: {error}");
    }
}

#[test]
fn late_clients_have_a_part_of_the_drain() {
    for (arguments, milliseconds) in [
        (&[][..], 1_000),
        (&["--termination-grace-period-seconds", "2"], 200),
        (&["--termination-grace-period-seconds", "65"], 2_000),
        (&["--drain-delay", "0"], 0),
        (&["--drain-delay", "3s"], 3_000),
        (&["--drain-delay", "1m"], 5_000),
    ] {
        let Settings { traffic, draining, .. } = usual(arguments).settings;
        assert_eq!(traffic.late(draining.deadline()), Duration::from_millis(milliseconds), "{arguments:?}");
    }
}

#[test]
fn bounds_fit_the_container_unless_they_are_given() {
    let room = Room { connections: 100, tunnels: 200 };
    let limits = usual(&[]).settings.traffic.limits(room);
    assert_eq!((limits.connections, limits.tunnels), (100, 200));
    let limits = usual(&["--max-connections", "7", "--max-tunnels", "9"]).settings.traffic.limits(room);
    assert_eq!((limits.connections, limits.tunnels), (7, 9));
    let ample = Room { connections: usize::MAX, tunnels: usize::MAX };
    assert_eq!(usual(&[]).settings.traffic.limits(ample), ambit_waypoint::Limits::default());
}

#[test]
fn every_setting_has_a_variable_and_is_explained() {
    let command = <Settings as clap::Args>::augment_args(clap::Command::new("settings"));
    for argument in command.get_arguments() {
        let name = argument.get_id();
        assert!(argument.get_env().is_some(), "`{name}` has no variable");
        assert!(argument.get_help().is_some() && !argument.is_hide_set(), "`{name}` isn't explained");
    }
}
