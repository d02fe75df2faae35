//! `ambit forward`: a loopback listener that enters the mesh with an identity.

use std::{net::SocketAddr, process::ExitCode};

use ambit_node::{
    control::{ForwardRequest, VERSION},
    forward::open,
};

use super::{Failure, MeshArgs};

/// Arguments of `ambit forward`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// The service to reach
    #[arg(value_name = "NS/SERVICE:PORT", value_parser = service)]
    service: (String, String, u16),
    /// Enter as this service account [default: the account `default` of the service's namespace]
    #[arg(long = "as", value_name = "NS/SA", value_parser = account)]
    identity: Option<(String, String)>,
    /// Loopback address to listen on; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: SocketAddr,
}

/// Forwards until the mesh ends or Ctrl-C.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (namespace, service, port) = args.service.clone();
    let request = ForwardRequest { version: VERSION, namespace, service, port, identity: args.identity.clone() };
    let forwarder =
        open(args.mesh.connect()?, request, args.listen).map_err(|error| Failure::new(error.to_string()))?;
    let address = forwarder.address().map_err(|error| Failure::new(error.to_string()))?;
    println!("http://{address} {}", forwarder.message.as_deref().unwrap_or_default());
    match forwarder.run() {
        Ok(never) => match never {},
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

fn service(text: &str) -> Result<(String, String, u16), String> {
    let parts = text.split_once('/').and_then(|(namespace, rest)| {
        let (service, port) = rest.split_once(':')?;
        Some((namespace, service, port.parse::<u16>().ok()?))
    });
    match parts {
        Some((namespace, service, port)) if !namespace.is_empty() && !service.is_empty() && port != 0 => {
            Ok((namespace.to_owned(), service.to_owned(), port))
        }
        _ => Err(format!("`{text}` is not NAMESPACE/SERVICE:PORT, for example kagenti-system/mlflow:5000")),
    }
}

fn account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, account)) if !namespace.is_empty() && !account.is_empty() && !account.contains('/') => {
            Ok((namespace.to_owned(), account.to_owned()))
        }
        _ => Err(format!("`{text}` is not NAMESPACE/SERVICE-ACCOUNT, for example kagenti-system/kagenti-ui")),
    }
}
