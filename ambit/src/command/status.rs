//! `ambit status`: the pods of the running mesh.

use std::process::ExitCode;

use ambit_node::control::{Request, Response};
use serde_json::Value;

use super::{Failure, MeshArgs};

/// Arguments of `ambit status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How to print the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table
    Text,
    /// One JSON object
    Json,
}

/// Prints the pods.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (response, _) = args.mesh.connect()?.call(&Request::Status).map_err(|error| Failure::new(error.to_string()))?;
    let Response::Status(status) = response else {
        return Err(Failure::new("the mesh gave another answer than asked for; is it of the same version?"));
    };
    match args.output {
        Format::Json => println!("{status}"),
        Format::Text => print_table(&status),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(status: &Value) {
    let text = |pod: &Value, key: &str| pod[key].as_str().unwrap_or("-").to_owned();
    let rows: Vec<[String; 5]> = status["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            let name = format!("{}/{}", text(pod, "namespace"), text(pod, "name"));
            [name, text(pod, "ip"), text(pod, "service_account"), text(pod, "kind"), text(pod, "state")]
        })
        .collect();
    let titles = ["POD", "ADDRESS", "ACCOUNT", "KIND", "STATE"].map(str::to_owned);
    let mut widths = [0; 5];
    for row in std::iter::once(&titles).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    for row in std::iter::once(&titles).chain(&rows) {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        println!("{}", line.trim_end());
    }
}
