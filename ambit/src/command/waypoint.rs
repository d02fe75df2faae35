//! `ambit waypoint`: the L7 proxy of one Gateway, in a pod of its own.

use std::process::ExitCode;

use super::Failure;
use crate::waypoint::{self, settings::Settings};

/// Variables that no flag stands for.
const OPEN_NAMES: &str = "\
Further environment variables:
  CA_ADDR                              the CA, where CA_ADDRESS isn't set
  XDS_HEADER_<NAME>, CA_HEADER_<NAME>  more metadata for the control plane and the CA
  ISTIO_META_<NAME>                    metadata of the node, as text; ISTIO_META_CLUSTER_ID and ISTIO_META_NETWORK stand in
                                       for CLUSTER_ID and NETWORK
  ISTIO_METAJSON_<NAME>                metadata of the node, as JSON
  PROXY_CONFIG                         YAML with discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata;
                                       also read from `defaultConfig` of ./etc/istio/config/mesh
Durations are written like 250ms, 30s, 5m or 1h30m; a number alone is seconds.";

/// Arguments of `ambit waypoint`. Every one is also an environment variable.
#[derive(Debug, clap::Args)]
#[command(after_long_help = OPEN_NAMES)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Accepted as Istio's charts pass them: `proxy waypoint`
    #[arg(hide = true, value_parser = ["proxy", "waypoint"])]
    words: Vec<String>,
}

/// Runs the waypoint until SIGTERM or Ctrl-C.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    waypoint::run(args.settings)
}
