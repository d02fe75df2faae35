//! The control plane and its CA, as the settings name them.

use std::sync::Arc;

use ambit_identity::{CrlFile, Trust};
use ambit_mesh::Store;
use ambit_xds::{
    Endpoint, Roots, Token,
    ca::CaOptions,
    channel,
    client::{Client, Handle, Options},
};
use tokio_util::sync::CancellationToken;

use super::settings::{ControlPlane, prefixed};
use crate::command::Failure;

/// The control plane at this address.
///
/// # Errors
/// When that is no address.
pub fn discovery_endpoint(settings: &ControlPlane, address: &str) -> Result<Endpoint, Failure> {
    let server = Server {
        address,
        roots: &settings.xds_root_ca,
        alternative: settings.alt_xds_hostname.as_ref(),
        headers: "XDS_HEADER_",
    };
    server.endpoint("XDS_ADDRESS", settings)
}

/// What the client of the CA is told: which cluster our token is of, and whether to ask for identities of others.
///
/// # Errors
/// When there is no address, or none that is one.
pub fn ca_options(settings: &ControlPlane, cluster: String, impersonate: bool) -> Result<CaOptions, Failure> {
    let address = settings.ca_address().ok_or_else(|| Failure::new("CA_ADDRESS is empty"))?;
    let server = Server {
        address: &address,
        roots: &settings.ca_root_ca,
        alternative: settings.alt_ca_hostname.as_ref(),
        headers: "CA_HEADER_",
    };
    let endpoint = server.endpoint("CA_ADDRESS", settings)?;
    Ok(CaOptions { ttl: settings.secret_ttl, impersonate, ..CaOptions::new(endpoint, cluster) })
}

/// Brings what the control plane says into the store, on the current runtime, until told to stop.
///
/// # Errors
/// When the options make no client.
pub fn discover(options: Options, store: &Arc<Store>, stop: &CancellationToken) -> Result<Handle, Failure> {
    let (sink, pushes) = channel::channel();
    let (client, handle) = Client::new(options, sink).map_err(|error| Failure::new(error.to_string()))?;
    tokio::spawn(Arc::clone(store).run(pushes));
    tokio::spawn(client.run(stop.clone()));
    Ok(handle)
}

/// What peers' certificates are judged by; revocation lists are read again when they change.
///
/// # Errors
/// When the revocation lists can't be used.
pub fn trust(settings: &ControlPlane) -> Result<Arc<Trust>, Failure> {
    let trust = Trust::new(settings.compliance_policy);
    if let Some(path) = &settings.crl_path {
        let mut file = CrlFile::new(path);
        file.load(&trust).map_err(|error| Failure::new(format!("CRL_PATH: {error}")))?;
        tokio::spawn(file.watch(Arc::clone(&trust)));
    }
    Ok(trust)
}

/// A server of the control plane.
struct Server<'s> {
    address: &'s str,
    roots: &'s str,
    alternative: Option<&'s String>,
    headers: &'static str,
}

// === impl Server ===

impl Server<'_> {
    fn endpoint(&self, variable: &str, settings: &ControlPlane) -> Result<Endpoint, Failure> {
        let address = self.address.parse().map_err(|error| Failure::new(format!("{variable}: {error}")))?;
        Ok(Endpoint {
            alternative_server_name: self.alternative.filter(|name| !name.is_empty()).cloned(),
            token: Token::from_setting(&settings.token()),
            headers: prefixed(self.headers).into_iter().collect(),
            ..Endpoint::new(address, Roots::from_setting(self.roots))
        })
    }
}
