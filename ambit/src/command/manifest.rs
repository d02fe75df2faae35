//! `ambit manifest`: the objects of an installation, as YAML.

use std::process::ExitCode;

use ambit_install::{Settings, chart};

use super::{Failure, crds};

/// Arguments of `ambit manifest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    installation: InstallationArgs,
    /// Put the custom resource definitions and the namespace before the objects
    #[arg(long)]
    crds: bool,
}

/// What can be chosen about an installation.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Installation")]
pub struct InstallationArgs {
    /// The namespace that everything runs in; it is the mesh's root namespace, too
    #[arg(long, short, default_value_t = Settings::default().namespace, value_parser = label)]
    namespace: String,
    /// Name of the image, with its tag or digest
    #[arg(long, default_value_t = Settings::default().image)]
    image: String,
    /// When a node fetches the image
    #[arg(long, default_value_t = Settings::default().pull_policy, value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: String,
    /// Control planes that run at once; one of them writes
    #[arg(long, default_value_t = Settings::default().replicas, value_parser = clap::value_parser!(u16).range(1..=100))]
    replicas: u16,
    /// Trust domain of the mesh's identities
    #[arg(long, default_value_t = Settings::default().trust_domain)]
    trust_domain: String,
    /// Domain that the names of services end in
    #[arg(long, default_value_t = Settings::default().cluster_domain)]
    cluster_domain: String,
    /// Name of the cluster
    #[arg(long, default_value_t = Settings::default().cluster_id)]
    cluster_id: String,
    /// Leave out the node proxy
    #[arg(long)]
    without_node_proxy: bool,
    /// Leave out the admission webhook
    #[arg(long)]
    without_webhook: bool,
    /// Leave out the NetworkPolicy
    #[arg(long)]
    without_network_policy: bool,
    /// Leave out the GatewayClass of waypoints
    #[arg(long)]
    without_gateway_classes: bool,
}

/// Prints the objects.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let text = chart::manifest(&args.installation.settings(), args.crds);
    crds::print(&text.map_err(|error| Failure::new(error.to_string()))?)
}

/// A namespace's name.
fn label(text: &str) -> Result<String, String> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    let fits = bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last());
    let known = bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-');
    if fits && known {
        Ok(text.to_owned())
    } else {
        Err("a namespace is 1 to 63 lower-case letters, digits and `-`".to_owned())
    }
}

// === impl InstallationArgs ===

impl InstallationArgs {
    /// The same for the crate that makes the objects.
    pub fn settings(&self) -> Settings {
        Settings {
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            pull_policy: self.image_pull_policy.clone(),
            replicas: self.replicas,
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            cluster_id: self.cluster_id.clone(),
            node_proxy: !self.without_node_proxy,
            webhook: !self.without_webhook,
            network_policy: !self.without_network_policy,
            gateway_classes: !self.without_gateway_classes,
        }
    }
}
