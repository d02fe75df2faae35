//! `ambit policy explain`: what happens to one request, in words.

mod answer;
mod text;

use std::{io::Write, net::IpAddr, path::PathBuf, process::ExitCode};

use ambit_api::{Diagnostic, Loaded, codes};
use ambit_control_plane::local;
use ambit_mesh::inputs::NamespacedName;

use self::answer::Question;
use crate::command::Failure;

/// Arguments of `ambit policy explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and folders with the mesh's manifests, or with policies alone
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Namespace and service account of the client
    #[arg(long, value_name = "NS/SA", value_parser = namespaced)]
    from: NamespacedName,
    /// The service that it calls, and the port; the service's first port by default
    #[arg(long, value_name = "NS/SVC[:PORT]", value_parser = destination)]
    to: Destination,
    /// Method of the request
    #[arg(value_parser = method)]
    method: String,
    /// Target of the request: a path, with its query if there is one
    path: String,
    /// Header line of the request, as often as needed; `Host` sets the host
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Address of the client, instead of that of its pod
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    /// Claim of the client's verified token, as often as needed; a value in `[]` or `{}` is read as JSON
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, serde_json::Value)>,
    /// Only this enforcement point
    #[arg(long, value_enum)]
    at: Option<Point>,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// A service and maybe a port of it.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) service: NamespacedName,
    pub(super) port: Option<u16>,
}

/// An enforcement point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Point {
    /// The service's waypoint
    Waypoint,
    /// The node proxy of the service's pods
    Ztunnel,
}

/// How to print the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Plain words
    Text,
    /// One JSON object
    Json,
}

/// Explains one request.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let loaded = ambit_api::load(&args.files);
    refuse_unreadable(&loaded)?;
    let origins: Vec<_> = loaded.objects.iter().chain(&loaded.malformed).map(|object| object.origin.clone()).collect();
    let (inputs, _) = local::preview(loaded);
    let question = Question {
        from: &args.from,
        to: &args.to.service,
        port: args.to.port,
        method: &args.method,
        path: &args.path,
        headers: &args.headers,
        source_ip: args.source_ip,
        claims: &args.claims,
        at: args.at,
    };
    let answer = answer::answer(&inputs, &question).map_err(Failure::new)?;
    let mut out = match args.output {
        Format::Text => text::render(&answer),
        Format::Json => serde_json::to_string_pretty(&answer).map_err(|error| Failure::new(error.to_string()))?,
    };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    std::io::stdout().write_all(out.as_bytes()).map_err(|error| Failure::new(format!("can't print: {error}")))?;
    // The process ends here. To give a large mesh's memory back piece by piece would take as long as the answer did.
    std::mem::forget((origins, inputs, answer));
    Ok(ExitCode::SUCCESS)
}

/// A policy with errors is explained as what it is: rejected. Anything else with errors leaves open what there is.
fn refuse_unreadable(loaded: &Loaded) -> Result<(), Failure> {
    let of_policy =
        |found: &Diagnostic| found.object.as_ref().is_some_and(|object| object.kind == "AuthorizationPolicy");
    let errors = loaded.diagnostics.iter().filter(|found| found.is_error());
    let (policies, others): (Vec<_>, Vec<_>) =
        errors.cloned().partition(|found| of_policy(found) && found.code != codes::DUPLICATE_OBJECT);
    eprint!("{}", ambit_api::render(&policies, false));
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("the files have errors\n{}", ambit_api::render(&others, false))))
}

fn namespaced(text: &str) -> Result<NamespacedName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(NamespacedName::new(namespace, name))
        }
        _ => Err("write it as NAMESPACE/NAME".to_owned()),
    }
}

pub(super) fn destination(text: &str) -> Result<Destination, String> {
    let (service, port) = match text.split_once(':') {
        None => (text, None),
        Some((service, port)) => {
            let port = port.parse::<u16>().ok().filter(|port| *port != 0);
            (service, Some(port.ok_or("the port is a number from 1 to 65535")?))
        }
    };
    Ok(Destination { service: namespaced(service)?, port })
}

fn method(text: &str) -> Result<String, String> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_method = !text.is_empty() && text.bytes().all(is_token);
    if is_method {
        Ok(text.to_owned())
    } else {
        Err("a method is one word like GET; the path comes after it".to_owned())
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `NAME: VALUE`")?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err("a header's name is one word".to_owned());
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

fn claim(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    let structured = value.starts_with(['[', '{']).then(|| serde_json::from_str(value));
    let value = match structured {
        None => serde_json::Value::from(value),
        Some(value) => value.map_err(|error| format!("its value isn't JSON: {error}"))?,
    };
    Ok((name.to_owned(), value))
}
