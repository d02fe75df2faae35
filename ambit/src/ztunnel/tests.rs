//! Every variable of Istio's node proxy (`spec/ztunnel.md` 17): what it changes in what the rest of the program is told, or
//! why it changes nothing.

use ambit_telemetry::metrics::Metrics;
use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::{configuration, parts, place, settings::Settings, sources};

/// `ambit ztunnel` alone.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: crate::command::ztunnel::Args,
}

/// What is told to a part of the program.
type Told = fn(&Settings) -> String;

enum Role {
    /// With this value the part is told something else. The other settings are needed for it.
    Changes(&'static str, &'static [(&'static str, &'static str)], Told),
    /// This value ends the start, and the message says this.
    Refused(&'static str, &'static str),
    /// Any value is accepted, and `--help` says so.
    WithoutEffect(&'static str),
    /// It has no flag; `--help` names it.
    Named,
}

use Role::{Changes, Named, Refused, WithoutEffect};

/// The original's table, in its order.
const VARIABLES: &[(&str, Role)] = &[
    ("PROXY_MODE", Changes("dedicated", &[("PROXY_WORKLOAD_INFO", "a/b/c")], proxy)),
    ("PROXY_WORKLOAD_INFO", Changes("a/b/c", &[("PROXY_MODE", "dedicated")], own_workload)),
    ("ENABLE_PROXY", Changes("false", &[], proxy)),
    ("NODE_NAME", Changes("n", &[], discovery)),
    ("NETWORK", Changes("n", &[], network)),
    ("CLUSTER_ID", Changes("c", &[], discovery)),
    ("ISTIO_META_CLUSTER_ID", Named),
    ("CLUSTER_DOMAIN", Changes("d", &[], proxy)),
    ("POD_NAME", Changes("p", &[], discovery)),
    ("POD_NAMESPACE", Changes("p", &[], discovery)),
    ("TRUST_DOMAIN", Changes("t", &[], proxy)),
    ("INSTANCE_IP", Changes("10.0.0.1", &[], discovery)),
    ("XDS_ADDRESS", Changes("https://elsewhere:1", &[], discovery)),
    ("CA_ADDRESS", Changes("https://elsewhere:1", &[], ca)),
    ("XDS_ROOT_CA", Changes("SYSTEM", &[], discovery)),
    ("CA_ROOT_CA", Changes("SYSTEM", &[], ca)),
    ("ALT_XDS_HOSTNAME", Changes("a", &[], discovery)),
    ("ALT_CA_HOSTNAME", Changes("a", &[], ca)),
    ("AUTH_TOKEN", Changes("t", &[], ca)),
    ("XDS_HEADER_", Named),
    ("CA_HEADER_", Named),
    ("SECRET_TTL", Changes("1h", &[], ca)),
    ("FAKE_CA", Refused("true", "--insecure-ca-dir")),
    ("XDS_ON_DEMAND", Changes("true", &[("ISTIO_META_DNS_CAPTURE", "false")], discovery)),
    ("LOCAL_XDS_PATH", Changes("f", &[], local)),
    ("LOCAL_XDS", Changes("{}", &[], local)),
    ("PREFERED_SERVICE_NAMESPACE", Changes("p", &[], proxy)),
    ("ZTUNNEL_WORKER_THREADS", Changes("7", &[], threads)),
    ("ZTUNNEL_RESOURCE_CPU_LIMIT", Changes("7", &[], threads)),
    ("ZTUNNEL_RESOURCE_CPU_REQUEST", Changes("40", &[], threads)),
    ("ZTUNNEL_CPU_LIMIT", Changes("7", &[], threads)),
    ("PROXY_CONFIG", Named),
    ("POOL_MAX_STREAMS_PER_CONNECTION", Changes("7", &[], proxy)),
    ("POOL_UNUSED_RELEASE_TIMEOUT", Changes("7s", &[], proxy)),
    ("HTTP2_STREAM_WINDOW_SIZE", Changes("70000", &[], proxy)),
    ("HTTP2_CONNECTION_WINDOW_SIZE", Changes("70000", &[], proxy)),
    ("HTTP2_FRAME_SIZE", Changes("70000", &[], proxy)),
    ("KEEPALIVE_ENABLED", Changes("false", &[], proxy)),
    ("KEEPALIVE_TIME", Changes("7s", &[], proxy)),
    ("KEEPALIVE_INTERVAL", Changes("7s", &[], proxy)),
    ("KEEPALIVE_RETRIES", Changes("7", &[], proxy)),
    ("USER_TIMEOUT_ENABLED", Changes("true", &[], proxy)),
    ("CONNECTION_TERMINATION_DEADLINE", Changes("7s", &[], deadline)),
    ("TERMINATION_GRACE_PERIOD_SECONDS", Changes("70", &[], deadline)),
    ("ENABLE_ORIG_SRC", Changes("true", &[], |settings| format!("{:?}", settings.pods.enable_orig_src))),
    ("PACKET_MARK", Changes("7", &[], proxy)),
    ("INPOD_UDS", Changes("u", &[], |settings| format!("{:?}", settings.pods.inpod_uds))),
    ("INPOD_PORT_REUSE", Changes("false", &[], proxy)),
    ("INPOD_ENABLED", WithoutEffect("true")),
    ("IPV6_ENABLED", Changes("false", &[], proxy)),
    ("LOCALHOST_APP_TUNNEL", Changes("false", &[], proxy)),
    ("UNSTABLE_ENABLE_SOCKS5", Changes("true", &[], proxy)),
    ("CRL_PATH", Changes("c", &[], |settings| format!("{:?}", settings.control_plane.crl_path))),
    ("ENABLE_RESPONSE_BAGGAGE", Changes("false", &[], proxy)),
    ("COMPLIANCE_POLICY", Changes("pqc", &[], |settings| format!("{:?}", settings.control_plane.compliance_policy))),
    ("TLS12_ENABLED", Refused("true", "TLS 1.2 isn't spoken")),
    ("AUTHZ_POLICY_INFO_LOGGING", WithoutEffect("true")),
    ("RUST_LOG", Changes("debug", &[], |settings| settings.operations.rust_log.clone())),
    ("LOG_FORMAT", Changes("json", &[], |settings| format!("{:?}", settings.operations.log_format))),
    ("ISTIO_META_", Named),
    ("ISTIO_METAJSON_", Named),
    ("ISTIO_META_DNS_CAPTURE", Changes("false", &[], proxy)),
    ("ISTIO_META_DNS_PROXY_ADDR", Changes("localhost:7", &[], proxy)),
    ("ISTIO_META_ISTIO_VERSION", Named),
];

#[test]
fn every_variable_of_the_original_takes_effect_or_says_why_not() {
    let help = help();
    for (variable, role) in VARIABLES {
        assert!(help.contains(variable), "`{variable}` isn't in --help");
        match role {
            Changes(value, others, told) => {
                let before = read(others);
                let with = [&[(*variable, *value)], *others].concat();
                let after = parse(&with).unwrap_or_else(|error| panic!("{variable}: {error}"));
                assert_ne!(told(&before), told(&after), "{variable}={value} changes nothing");
            }
            Refused(value, reason) => {
                let error = parse(&[(variable, value)]).expect_err(variable);
                assert!(
                    error.contains(reason) && error.contains(&flag(variable)) || error.contains(variable),
                    "{error}"
                );
            }
            WithoutEffect(value) => {
                parse(&[(variable, value)]).unwrap_or_else(|error| panic!("{variable}: {error}"));
                let start = help.find(&format!("[env: {variable}")).expect("in the help");
                let said = help[..start].rfind("Accepted and without effect").expect("it says so");
                assert!(start - said < 300, "`{variable}` doesn't say that it has no effect");
            }
            Named => {}
        }
    }
}

#[test]
fn no_variable_is_unknown_to_the_table() {
    let known = |name: &str| VARIABLES.iter().any(|(variable, _)| *variable == name) || OWN.contains(&name);
    let command = Settings::augment_args(clap::Command::new("settings"));
    for argument in command.get_arguments() {
        let name = argument.get_env().and_then(|name| name.to_str()).expect("every setting has a variable");
        assert!(known(name) || name.starts_with("AMBIT_"), "`{name}` is in no table");
        assert!(!argument.is_hide_set(), "`{name}` is hidden");
        assert!(argument.get_help().is_some(), "`{name}` isn't explained");
    }
}

/// Known from elsewhere than that table.
const OWN: &[&str] = &["SERVICE_ACCOUNT"];

fn help() -> String {
    let mut command = Command::command().term_width(0);
    command.render_long_help().to_string()
}

/// The flag of a variable.
fn flag(variable: &str) -> String {
    let command = Settings::augment_args(clap::Command::new("settings"));
    let argument = command.get_arguments().find(|argument| argument.get_env().is_some_and(|name| name == variable));
    let argument = argument.unwrap_or_else(|| panic!("no flag stands for `{variable}`"));
    format!("--{}", argument.get_long().expect("a long flag"))
}

fn parse(variables: &[(&str, &str)]) -> Result<Settings, String> {
    let settings = try_read(variables)?;
    settings.check().map_err(|error| error.to_string())?;
    Ok(settings)
}

/// Settings that need not make sense together.
fn read(variables: &[(&str, &str)]) -> Settings {
    try_read(variables).unwrap_or_else(|error| panic!("{variables:?}: {error}"))
}

fn try_read(variables: &[(&str, &str)]) -> Result<Settings, String> {
    let words = variables.iter().flat_map(|(variable, value)| [flag(variable), (*value).to_owned()]);
    let command = Settings::augment_args(clap::Command::new("settings"));
    let matches = command.try_get_matches_from(std::iter::once("settings".to_owned()).chain(words));
    matches.and_then(|matches| Settings::from_arg_matches(&matches)).map_err(|error| error.to_string())
}

fn proxy(settings: &Settings) -> String {
    let limits = settings.budgets.limits(ambit_ztunnel::Limits::default());
    let config = configuration(settings, limits, &Metrics::new("ztunnel", "test"));
    format!("{config:?} {:?} {:?}", place(settings), parts(settings))
}

fn discovery(settings: &Settings) -> String {
    let address = settings.control_plane.xds_address().unwrap_or_default();
    let options = sources::discovery(settings, &address).unwrap_or_else(|error| panic!("{error:?}"));
    format!("{options:?}")
}

fn ca(settings: &Settings) -> String {
    format!("{:?}", sources::ca(settings).unwrap_or_else(|error| panic!("{error:?}")))
}

fn threads(settings: &Settings) -> String {
    settings.threads.workers(64).to_string()
}

fn deadline(settings: &Settings) -> String {
    format!("{:?}", settings.draining.deadline())
}

fn own_workload(settings: &Settings) -> String {
    format!("{:?}", settings.mode.proxy_workload_info)
}

fn network(settings: &Settings) -> String {
    settings.mode.network.clone()
}

fn local(settings: &Settings) -> String {
    format!("{:?} {:?}", settings.sources.local_xds_path, settings.sources.local_xds)
}
