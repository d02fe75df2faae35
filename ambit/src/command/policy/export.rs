//! `ambit policy export`: the policies of a service as filters of another proxy.

use std::{collections::BTreeMap, io::Write, path::PathBuf, process::ExitCode};

use ambit_api::{AuthorizationPolicy, Loaded, MeshConfig, Resource, mesh_config::ExtensionProvider};
use ambit_control_plane::local;
use ambit_mesh::{
    inputs::{Inputs, NamespacedName, Service},
    way::{Considered, Journey, way},
};
use ambit_policy::{
    Options, PathNormalization, compile,
    envoy::{
        self, Dialect, EnvoyTarget, ExternalAuthorizer, ExternalProtocol, IdentitySource, PEER_PRINCIPAL, Protocol,
    },
};
use ambit_xds::workload::AppProtocol;
use serde_json::{Map, Value, json};

use super::{
    explain::{Destination, Point, destination},
    service,
};
use crate::command::Failure;

/// How long an external authorizer may take to answer where its configuration doesn't say, as in Istio.
const DEFAULT_TIMEOUT_MS: u32 = 600_000;

/// Arguments of `ambit policy export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As Envoy RBAC filters
    #[arg(long, required = true)]
    envoy: bool,
    /// Files and folders with the mesh's manifests, or with policies alone
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The service, and the port, which says whether HTTP is spoken; both kinds of filters if it isn't known
    #[arg(long, value_name = "NS/SVC[:PORT]", value_parser = destination)]
    to: Destination,
    /// The enforcement point that the Envoy takes the place of
    #[arg(long, value_enum, default_value_t = Point::Waypoint)]
    at: Point,
    /// Where the Envoy finds who is calling [default: filter-state at a waypoint, mtls in front of a pod]
    #[arg(long, value_enum)]
    identity: Option<Identity>,
    /// Render identity fields as Istio does, which searches for namespaces and service accounts anywhere in an identity
    #[arg(long)]
    like_istio: bool,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

/// Where the Envoy finds who is calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Identity {
    /// In the client certificate of the connection
    Mtls,
    /// In the filter state `io.istio.peer_principal`, which a waypoint fills from the tunnel
    FilterState,
}

/// How to print the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// YAML
    Yaml,
    /// JSON
    Json,
}

/// What is enforced at one place.
struct Enforcement {
    place: String,
    policies: Vec<Considered>,
    protocols: &'static [Protocol],
}

/// Prints the filters of every place where the service's policies are enforced.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let loaded = ambit_api::load(&args.files);
    refuse_errors(&loaded)?;
    let authorizers = authorizers(&loaded);
    let (inputs, diagnostics) = local::preview(loaded);
    eprint!("{}", ambit_api::render(&diagnostics, false));
    let exported = Exporter { args, options: inputs.settings.options(), authorizers };
    let enforcements = enforcements(&inputs, args)?;
    let places = enforcements.iter().map(|place| exported.place(place)).collect::<Result<_, _>>()?;
    if enforcements.iter().any(|place| place.protocols.contains(&Protocol::Http)) {
        eprintln!("note: {}", path_settings(inputs.settings.paths()));
    }
    let printed = json!({"enforcementPoints": Value::Array(places)});
    let text = match args.output {
        Format::Yaml => ambit_api::to_yaml(&printed),
        Format::Json => format!("{printed:#}\n"),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::new(format!("can't print: {error}")))?;
    Ok(ExitCode::SUCCESS)
}

/// Half of what the files say would be another meaning, so nothing is exported.
fn refuse_errors(loaded: &Loaded) -> Result<(), Failure> {
    eprint!("{}", ambit_api::render(&loaded.diagnostics, false));
    if loaded.has_errors() {
        return Err(Failure::new("the files have errors, so nothing is exported"));
    }
    Ok(())
}

/// How paths are read is not an RBAC filter's to say.
fn path_settings(paths: PathNormalization) -> &'static str {
    match paths {
        PathNormalization::AllReadings => {
            "the filters judge one reading of a path; that every reading must be allowed can't be exported. Set \
             `normalizePath: true`, `mergeSlashes: true` and `pathWithEscapedSlashesAction: REJECT_REQUEST` in the HTTP \
             connection manager, so that the application gets the path that was judged; parameters (`;x=1`) stay"
        }
        PathNormalization::None => "set `normalizePath: false` in the HTTP connection manager, as the MeshConfig says",
        PathNormalization::Base => "set `normalizePath: true` in the HTTP connection manager, as the MeshConfig says",
        PathNormalization::MergeSlashes => {
            "set `normalizePath: true` and `mergeSlashes: true` in the HTTP connection manager, as the MeshConfig says"
        }
        PathNormalization::DecodeAndMergeSlashes => {
            "set `normalizePath: true`, `mergeSlashes: true` and `pathWithEscapedSlashesAction: UNESCAPE_AND_FORWARD` in \
             the HTTP connection manager, as the MeshConfig says"
        }
    }
}

fn enforcements(inputs: &Inputs, args: &Args) -> Result<Vec<Enforcement>, Failure> {
    let to = &args.to.service;
    service::check(inputs, to).map_err(Failure::new)?;
    let service = inputs.services.get(to);
    if service.is_none() {
        eprintln!("note: service `{to}` isn't in the files; what is attached to it by name is exported");
    }
    // Who calls doesn't change what is enforced.
    let anyone = NamespacedName::new(&to.namespace, "default");
    let way = way(inputs, &Journey { from: &anyone, to, port: args.to.port });
    match args.at {
        Point::Waypoint => {
            let no_waypoint = || {
                let fix =
                    "label it `istio.io/use-waypoint`, or export what its pods' proxies enforce by `--at ztunnel`";
                Failure::new(format!("service `{to}` has no waypoint; {fix}"))
            };
            let waypoint = way.waypoint.ok_or_else(no_waypoint)?;
            let gateway = waypoint.gateway.map_or_else(|| "its waypoint".to_owned(), |name| format!("waypoint {name}"));
            let protocols = protocols(service, args.to.port);
            Ok(vec![Enforcement {
                place: format!("{gateway}, for service {to}"),
                policies: waypoint.policies,
                protocols,
            }])
        }
        Point::Ztunnel => {
            let place = |pod: Option<NamespacedName>, others| match (pod, others) {
                (None, _) => format!("any pod of service {to}"),
                (Some(pod), 0) => format!("pod {pod} of service {to}"),
                (Some(pod), others) => format!("pod {pod} and {others} more of service {to}"),
            };
            let of_pods = way.destinations.into_iter().map(|pods| Enforcement {
                place: place(pods.pod, pods.others),
                policies: pods.policies.into_iter().filter(|policy| policy.left_out.is_none()).collect(),
                protocols: &[Protocol::Tcp],
            });
            Ok(of_pods.collect())
        }
    }
}

/// What may be spoken on the port of the service.
fn protocols(service: Option<&Service>, port: Option<u16>) -> &'static [Protocol] {
    let port = match (service, port) {
        (Some(service), Some(number)) => service.ports.iter().find(|port| port.port == number),
        (Some(service), None) => service.ports.first().filter(|_| service.ports.len() == 1),
        (None, _) => None,
    };
    match port.map(|port| port.protocol) {
        Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => &[Protocol::Http],
        Some(AppProtocol::Tcp | AppProtocol::Tls) => &[Protocol::Tcp],
        Some(AppProtocol::Unknown) | None => &[Protocol::Http, Protocol::Tcp],
    }
}

/// The external authorizers of the mesh's configuration, each in a cluster of the name that Istio would give it.
fn authorizers(loaded: &Loaded) -> BTreeMap<String, ExternalAuthorizer> {
    let configs = loaded.objects.iter().filter_map(|object| match &object.resource {
        Resource::MeshConfig(config) => Some(&**config),
        _ => None,
    });
    let providers = configs.flat_map(|MeshConfig { spec, .. }| &spec.extension_providers);
    providers.filter_map(|provider| Some((provider.name.clone(), authorizer(provider)?))).collect()
}

fn authorizer(provider: &ExtensionProvider) -> Option<ExternalAuthorizer> {
    let (service, port, timeout, fail_open, protocol) =
        match (&provider.envoy_ext_authz_http, &provider.envoy_ext_authz_grpc) {
            (Some(http), _) => {
                let path_prefix = http.path_prefix.clone().unwrap_or_default();
                (&http.service, http.port, &http.timeout, http.fail_open, ExternalProtocol::Http { path_prefix })
            }
            (None, Some(grpc)) => (&grpc.service, grpc.port, &grpc.timeout, grpc.fail_open, ExternalProtocol::Grpc),
            (None, None) => return None,
        };
    let host = service.split_once('/').map_or(service.as_str(), |(_, host)| host);
    let timeout_ms = timeout.as_deref().and_then(milliseconds).unwrap_or(DEFAULT_TIMEOUT_MS);
    Some(ExternalAuthorizer { cluster: format!("outbound|{port}||{host}"), protocol, timeout_ms, fail_open })
}

/// A duration that validation has let through: `500ms`, `2s`, `1.5m`.
fn milliseconds(duration: &str) -> Option<u32> {
    let units = [("ms", 1.0), ("s", 1_000.0), ("m", 60_000.0)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((duration.strip_suffix(name)?, unit)))?;
    let rounded = (number.parse::<f64>().ok()? * unit).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped to what fits")]
    Some(rounded.clamp(1.0, f64::from(u32::MAX)) as u32)
}

/// What is the same for every place.
struct Exporter<'a> {
    args: &'a Args,
    options: Options,
    authorizers: BTreeMap<String, ExternalAuthorizer>,
}

// === impl Exporter ===

impl Exporter<'_> {
    fn place(&self, enforcement: &Enforcement) -> Result<Value, Failure> {
        let mut policies = Vec::new();
        let mut listed = Map::new();
        for considered in &enforcement.policies {
            let policy = considered.policy.as_ref().map_err(|refusal| Failure::new(refusal.to_string()))?;
            policies.push(AuthorizationPolicy::clone(policy));
            listed.insert(format!("{}/{}", policy.namespace, policy.name), considered.via.as_str().into());
        }
        // What the engine refuses is not for another proxy either.
        compile(&policies, &self.options).map_err(|error| Failure::new(error.to_string()))?;
        let mut place = Map::from_iter([
            ("place".to_owned(), enforcement.place.as_str().into()),
            ("policies".to_owned(), Value::Object(listed)),
        ]);
        for protocol in enforcement.protocols {
            let target = EnvoyTarget {
                options: &self.options,
                protocol: *protocol,
                identity: self.identity(),
                dialect: if self.args.like_istio { Dialect::Istio } else { Dialect::Strict },
                authorizers: &self.authorizers,
            };
            let filters = envoy::filters(&policies, &target).map_err(|error| Failure::new(error.to_string()))?;
            match protocol {
                Protocol::Http => {
                    let (before, after) = (filters.before_authentication, filters.after_authentication);
                    place.insert("httpFilters".to_owned(), after.into());
                    if !before.is_empty() {
                        place.insert("httpFiltersBeforeAuthentication".to_owned(), before.into());
                    }
                }
                Protocol::Tcp => {
                    let all: Vec<_> =
                        filters.before_authentication.into_iter().chain(filters.after_authentication).collect();
                    place.insert("networkFilters".to_owned(), all.into());
                }
            }
        }
        Ok(Value::Object(place))
    }

    fn identity(&self) -> IdentitySource {
        let default = match self.args.at {
            Point::Waypoint => Identity::FilterState,
            Point::Ztunnel => Identity::Mtls,
        };
        match self.args.identity.unwrap_or(default) {
            Identity::Mtls => IdentitySource::MutualTls,
            Identity::FilterState => IdentitySource::FilterState(PEER_PRINCIPAL),
        }
    }
}
