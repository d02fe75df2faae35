//! `ambit ztunnel`: the node proxy, for a cluster's node or for one workload.

use std::process::ExitCode;

use super::Failure;
use crate::ztunnel::{self, settings::Settings};

/// Variables that no flag stands for.
const OPEN_NAMES: &str = "\
Further environment variables:
  XDS_HEADER_<NAME>, CA_HEADER_<NAME>  more metadata for the control plane and the CA
  ISTIO_META_<NAME>                    metadata of the node, as text; ISTIO_META_CLUSTER_ID stands in for CLUSTER_ID, and
                                       ISTIO_META_ISTIO_VERSION is shown as the version
  ISTIO_METAJSON_<NAME>                metadata of the node, as JSON
  PROXY_CONFIG                         YAML with discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata;
                                       also read from `defaultConfig` of ./etc/istio/config/mesh
Durations are written like 250ms, 30s, 5m or 1h30m; a number alone is seconds.";

/// Arguments of `ambit ztunnel`. Every one is also an environment variable, under the name that Istio's ztunnel has for it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = OPEN_NAMES)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Accepted as Istio's charts pass them: `proxy ztunnel`
    #[arg(hide = true, value_parser = ["proxy", "ztunnel"])]
    words: Vec<String>,
}

/// Runs the node proxy until SIGTERM, Ctrl-C or `/quitquitquit`.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    ztunnel::run(args.settings)
}
