//! `ambit run`: any program as a workload of the running mesh.

use std::{collections::BTreeMap, env, ffi::OsString, path::PathBuf, process::ExitCode};

use ambit_node::{
    control::{RunRequest, VERSION},
    run::{RunSpec, attach, exec_in},
};

use super::{Failure, MeshArgs};

/// Arguments of `ambit run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Namespace of the workload
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Service account of the workload; its identity is spiffe://cluster.local/ns/NS/sa/SA
    #[arg(long = "sa", alias = "service-account", default_value = "default", value_name = "SA")]
    service_account: String,
    /// Name of the pod: a declared one that has no command, or a new one [default: the one waiting pod of that account, else made up]
    #[arg(long, value_name = "POD")]
    name: Option<String>,
    /// A label of a new pod; may be given several times
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Run it outside of the mesh: no identity, nothing captured but DNS and service addresses
    #[arg(long)]
    no_mesh: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the program and passes its exit code on.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let request = RunRequest {
        version: VERSION,
        namespace: args.namespace,
        service_account: args.service_account,
        name: args.name,
        labels: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
        mesh: !args.no_mesh,
    };
    let session = attach(args.mesh.connect()?, request).map_err(|error| Failure::new(error.to_string()))?;
    let spec = RunSpec {
        argv: args.command,
        env: env::vars_os().collect(),
        working_dir: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
    };
    let code = exec_in(&session, &spec).map_err(|error| Failure::new(error.to_string()))?;
    session.end();
    Ok(ExitCode::from(code))
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}
