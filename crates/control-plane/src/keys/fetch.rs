//! One fetch: names to addresses that are allowed, HTTP or HTTPS to one of them, and a key set out of the answer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ambit_api::{jwks::KeySet, limits::MAX_KEY_SET_BYTES, request_authentication::KeySource};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OnceCell,
};
use tokio_rustls::TlsConnector;

use super::{Ranges, Ways};
use crate::limits::{MAX_KEY_ADDRESSES, MAX_KEY_REDIRECTS, MAX_KEY_TIMEOUT};

/// Who vouches for key servers: the machine's roots, read when they are first needed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust(Arc<OnceCell<Arc<ClientConfig>>>);

/// Fetches a key set that can be used.
///
/// # Errors
/// Why there is none, in one line, for the record of every token that is refused for it.
pub(super) async fn fetch(
    ways: &Ways,
    source: &KeySource,
    ranges: &Ranges,
    timeout: Duration,
) -> Result<String, String> {
    let timeout = timeout.min(MAX_KEY_TIMEOUT);
    let fetched = tokio::time::timeout(timeout, fetch_in_time(ways, source, ranges)).await;
    let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
    fetched.map_err(|reason| format!("the keys of {source} can't be fetched: {reason}"))
}

async fn fetch_in_time(ways: &Ways, source: &KeySource, ranges: &Ranges) -> Result<String, String> {
    let address = match source {
        KeySource::Uri(address) => address.clone(),
        KeySource::Issuer(issuer) => {
            let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            let text = get(ways, &address, ranges).await?;
            let configuration: serde_json::Value =
                serde_json::from_slice(&text).map_err(|_| "its OpenID configuration isn't JSON".to_owned())?;
            let keys = configuration.get("jwks_uri").and_then(serde_json::Value::as_str);
            keys.ok_or("its OpenID configuration has no `jwks_uri`")?.to_owned()
        }
    };
    let text = get(ways, &address, ranges).await?;
    KeySet::parse(&text).map_err(|error| error.to_string())?;
    String::from_utf8(text).map_err(|_| "the key set isn't UTF-8".to_owned())
}

/// The content of an address, wherever it has moved to.
async fn get(ways: &Ways, address: &str, ranges: &Ranges) -> Result<Vec<u8>, String> {
    let mut uri = parse(address)?;
    for _ in 0..=MAX_KEY_REDIRECTS {
        let response = ask(ways, &uri, ranges).await?;
        let status = response.status();
        if status == StatusCode::OK {
            let body = Limited::new(response.into_body(), MAX_KEY_SET_BYTES).collect().await;
            return body
                .map(|body| body.to_bytes().to_vec())
                .map_err(|error| format!("the answer breaks off: {error}"));
        }
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let Some(location) = location.filter(|_| status.is_redirection()) else {
            return Err(format!("the answer is {status}"));
        };
        uri = moved(&uri, location)?;
    }
    Err(format!("it has moved more than {MAX_KEY_REDIRECTS} times"))
}

fn parse(address: &str) -> Result<Uri, String> {
    let uri: Uri = address.parse().map_err(|_| "that is no address".to_owned())?;
    let known = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme());
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if known && plain { Ok(uri) } else { Err("the address isn't one of HTTP or HTTPS".to_owned()) }
}

/// Where it has moved to. What was asked for over TLS is never asked for without.
fn moved(from: &Uri, location: &str) -> Result<Uri, String> {
    let to = if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(location.parse().map_err(|_| "it has moved to what is no address".to_owned())?);
        Uri::from_parts(parts).map_err(|_| "it has moved to what is no address".to_owned())?
    } else {
        parse(location)?
    };
    let downgraded = from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS);
    if downgraded { Err("it has moved to an address without TLS".to_owned()) } else { Ok(to) }
}

/// Asks one of the addresses that may be asked.
async fn ask(ways: &Ways, uri: &Uri, ranges: &Ranges) -> Result<Response<Incoming>, String> {
    let host = uri.host().unwrap_or_default();
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let (addresses, inside) = addresses(ways, host, port).await?;
    let admitted = addresses.iter().filter(|address| ranges.admit(address.ip()));
    let mut failure = match addresses.first() {
        None => format!("`{host}` has no address"),
        Some(first) => format!(
            "`{host}` is at {}, where keys may not be fetched from; allow it by `jwksAllowedRanges` of a MeshConfig",
            first.ip()
        ),
    };
    for address in admitted.take(MAX_KEY_ADDRESSES) {
        match ways.outside.connect(*address, inside).await {
            Err(error) => failure = format!("{address} can't be reached: {error}"),
            Ok(stream) if tls => {
                let connector = TlsConnector::from(ways.trust.config().await?);
                let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(bare).map_err(|_| format!("`{host}` is no server's name"))?;
                match connector.connect(name, stream).await {
                    Err(error) => failure = format!("{address}: {error}"),
                    Ok(stream) => return exchange(stream, uri).await,
                }
            }
            Ok(stream) => return exchange(stream, uri).await,
        }
    }
    Err(failure)
}

/// Where a host is, and whether it is of the mesh.
async fn addresses(ways: &Ways, host: &str, port: u16) -> Result<(Vec<SocketAddr>, bool), String> {
    if let Some(endpoints) = ways.inside.endpoints(host.to_ascii_lowercase(), port).await {
        return if endpoints.is_empty() {
            Err(format!("`{host}` has no pod that is ready"))
        } else {
            Ok((endpoints, true))
        };
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = match bare.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => ways
            .outside
            .resolve(bare.to_owned())
            .await
            .map_err(|error| format!("`{host}` can't be resolved: {error}"))?,
    };
    Ok((found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(), false))
}

/// One request on a connection of its own.
async fn exchange<S>(stream: S, uri: &Uri) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let wrong = |error: hyper::Error| format!("the answer can't be read: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(wrong)?;
    // It ends with the response's body, or when that is dropped.
    tokio::spawn(connection);
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let request = Request::get(target)
        .header(header::HOST, authority)
        .header(header::ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"))
        .header(header::USER_AGENT, HeaderValue::from_static("ambit"))
        .header(header::CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(wrong)
}

// === impl Trust ===

impl Trust {
    /// These roots instead of the machine's.
    #[cfg(test)]
    pub(super) fn of(roots: RootCertStore) -> Self {
        Self(Arc::new(OnceCell::new_with(configuration(roots).ok())))
    }

    async fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let read = || async {
            let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let mut roots = RootCertStore::empty();
            let loaded = loaded.map_err(|_| "the machine's roots can't be read".to_owned())?;
            // Systems ship roots that are older than the rules they break.
            roots.add_parsable_certificates(loaded.certs);
            if roots.is_empty() { Err("the machine has no roots for TLS".to_owned()) } else { configuration(roots) }
        };
        self.0.get_or_try_init(read).await.map(Arc::clone)
    }
}

fn configuration(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
