//! `ambit stop`: stops a pod of the running mesh.

use std::process::ExitCode;

use ambit_node::control::{Request, Response};

use super::{Failure, MeshArgs};

/// Arguments of `ambit stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// The pod, as `ambit status` names it; it stays stopped until the mesh is started again
    #[arg(value_name = "NS/POD")]
    pod: String,
}

/// Stops the pod.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let request = Request::StopPod { pod: args.pod.clone() };
    let (response, _) = args.mesh.connect()?.call(&request).map_err(|error| Failure::new(error.to_string()))?;
    match response {
        Response::Ready { message } => {
            println!("{}", message.unwrap_or_default());
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(Failure::new("the mesh gave another answer than asked for; is it of the same version?")),
    }
}
