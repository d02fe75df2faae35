use std::time::Duration;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    settings: Settings,
}

fn parse(arguments: &[&str]) -> Result<Settings, String> {
    let words = std::iter::once("ztunnel").chain(arguments.iter().copied());
    let settings = Command::try_parse_from(words).map_err(|error| error.to_string())?.settings;
    settings.check().map_err(|error| error.to_string())?;
    Ok(settings)
}

#[test]
fn the_defaults_are_those_of_the_original() {
    let settings = parse(&[]).expect("no setting is required");
    assert_eq!(settings.mode.proxy_mode, ProxyMode::Shared);
    assert_eq!(settings.mode.cluster(), "Kubernetes");
    assert_eq!(settings.pods.mark(ProxyMode::Shared), Some(0x539));
    assert_eq!(settings.pods.mark(ProxyMode::Dedicated), None);
    assert_eq!(settings.pods.inpod_uds.to_str(), Some("/var/run/ztunnel/ztunnel.sock"));
    assert_eq!(settings.control_plane.secret_ttl, Duration::from_secs(24 * 3600));
    assert_eq!(settings.draining.deadline(), Duration::from_secs(5));
    let limits = settings.transport.limits();
    assert_eq!((limits.stream_window_bytes, limits.connection_window_bytes), (4_194_304, 16_777_216));
    assert_eq!((limits.max_frame_bytes, limits.max_streams_per_connection), (1_048_576, 100));
    assert_eq!(limits.idle_timeout, Duration::from_secs(300));
    // Where the original has none, the transport's own.
    assert_eq!(settings.transport.idle(), ambit_hbone::copy::Timeouts::default());
    assert_eq!(settings.transport.stream(), ambit_hbone::socket::StreamOptions::default());
    let own = ambit_hbone::Limits::default();
    assert_eq!((limits.handshake_timeout, limits.response_timeout), (own.handshake_timeout, own.response_timeout));
    assert_eq!(limits.keepalive_interval, own.keepalive_interval);
}

#[test]
fn malformed_values_end_the_start_and_are_named() {
    for (flag, value) in [
        ("--proxy-mode", "sidecar"),
        ("--proxy-workload-info", "a/b"),
        ("--enable-proxy", "yes"),
        ("--instance-ip", "10.0.0"),
        ("--packet-mark", "x"),
        ("--secret-ttl", "a day"),
        ("--pool-max-streams-per-connection", "0"),
        ("--pool-unused-release-timeout", "5 fortnights"),
        ("--http2-frame-size", "1"),
        ("--keepalive-retries", "200"),
        ("--tls12-enabled", "true"),
        ("--compliance-policy", "fips"),
        ("--ztunnel-worker-threads", "150%"),
        ("--log-format", "xml"),
        ("--connection-termination-deadline", ""),
        ("--idle-timeout", "0s"),
        ("--dns-proxy-addr", "localhost"),
        ("--max-connections", "0"),
    ] {
        let error = parse(&[flag, value]).expect_err(flag);
        assert!(error.contains(flag), "{flag}: {error}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let cases: [(&[&str], &str); 9] = [
        (&["--proxy-mode", "dedicated"], "PROXY_WORKLOAD_INFO"),
        (&["--proxy-workload-info", "a/b/c"], "PROXY_MODE=dedicated"),
        (&["--enable-proxy", "false", "--dns-capture", "false"], "nothing to do"),
        (&["--local-xds", "{}", "--local-xds-path", "x"], "choose one"),
        (&["--xds-address", ""], "LOCAL_XDS"),
        (&["--xds-on-demand", "true"], "ISTIO_META_DNS_CAPTURE=false"),
        (
            &["--xds-on-demand", "true", "--dns-capture", "false", "--xds-address", "", "--local-xds", "{}"],
            "XDS_ADDRESS",
        ),
        (&["--fake-ca", "true"], "--insecure-ca-dir"),
        (&["--ca-address", ""], "CA_ADDRESS"),
    ];
    for (arguments, names) in cases {
        let error = parse(arguments).expect_err(names);
        assert!(error.contains(names), "{arguments:?}: {error}");
    }
    let fine =
        ["--proxy-mode", "dedicated", "--proxy-workload-info", "a/b/c", "--xds-address", "", "--local-xds", "{}"];
    assert!(parse(&[&fine[..], &["--insecure-ca-dir", "x", "--fake-ca", "true"]].concat()).is_ok());
    assert!(parse(&["--xds-on-demand", "true", "--dns-capture", "false"]).is_ok());
}

#[test]
fn the_drain_deadline_follows_the_pods_grace_period() {
    for (arguments, seconds) in [
        (&["--connection-termination-deadline", "90s", "--termination-grace-period-seconds", "30"][..], 90),
        (&["--termination-grace-period-seconds", "30"], 25),
        (&["--termination-grace-period-seconds", "11"], 6),
        (&["--termination-grace-period-seconds", "10"], 9),
        (&["--termination-grace-period-seconds", "1"], 1),
        (&["--termination-grace-period-seconds", "0"], 1),
        (&[], 5),
    ] {
        let deadline = parse(arguments).expect("valid").draining.deadline();
        assert_eq!(deadline, Duration::from_secs(seconds), "{arguments:?}");
    }
}

#[test]
fn threads_follow_the_containers_share() {
    for (arguments, cores, threads) in [
        (&[][..], 2, 2),
        (&[], 16, 4),
        (&["--ztunnel-resource-cpu-request", "6"], 16, 6),
        (&["--ztunnel-resource-cpu-limit", "1500m"], 16, 2),
        (&["--ztunnel-resource-cpu-limit", "1", "--ztunnel-resource-cpu-request", "2"], 16, 2),
        (&["--ztunnel-cpu-limit", "3"], 16, 3),
        (&["--ztunnel-worker-threads", "5"], 2, 5),
        (&["--ztunnel-worker-threads", "0"], 8, 8),
        (&["--ztunnel-worker-threads", "30%"], 8, 3),
        (&["--ztunnel-worker-threads", "1%"], 8, 1),
    ] {
        assert_eq!(parse(arguments).expect("valid").threads.workers(cores), threads, "{arguments:?} of {cores}");
    }
}

#[test]
fn durations_are_read_as_they_are_written() {
    use crate::proxy::settings::{cores, duration};
    for (text, millis) in [
        ("5m", 300_000),
        ("180s", 180_000),
        ("7", 7_000),
        ("1h30m", 5_400_000),
        ("1m 30s", 90_000),
        ("250ms", 250),
        ("0s", 0),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "s", "5x", "-5s", "5s5", "99999999999d", "1.5h"] {
        assert!(duration(text).is_err(), "{text}");
    }
    for (text, whole) in [("2", Some(2)), ("1.2", Some(2)), ("500m", Some(1)), ("x", None), ("-1", None), ("NaN", None)]
    {
        assert_eq!(cores(text).ok(), whole, "{text}");
    }
}
