//! Where a server is, how to be sure of it, and how it can be sure of us (`spec/ztunnel.md` 8, 9, 17).

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, client::ResolvesClientCert, crypto::aws_lc_rs, version::TLS13};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tonic::metadata::{Ascii, AsciiMetadataValue, MetadataKey, MetadataMap};

use super::{address::ServerAddress, verify::EitherName};
use crate::limits::{MAX_CREDENTIAL_BYTES, MAX_EXTRA_HEADERS};

/// Value of the roots' setting that stands for the system's own.
const SYSTEM: &str = "SYSTEM";

/// A gRPC server to connect to. Roots and token are read again for each connection, so files may be replaced.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: ServerAddress,
    /// Who may have signed its certificate.
    pub roots: Roots,
    /// A name that its certificate may have instead of the address's host (`ALT_XDS_HOSTNAME`, `ALT_CA_HOSTNAME`).
    pub alternative_server_name: Option<String>,
    /// What we say who we are with.
    pub token: Token,
    /// More headers, name and value (`XDS_HEADER_*`, `CA_HEADER_*`).
    pub headers: Vec<(String, String)>,
    /// The certificate we present if asked for one.
    pub client_certificate: Option<Arc<dyn ResolvesClientCert>>,
}

/// Certificates that servers must chain to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file.
    File(PathBuf),
    /// PEM.
    Inline(String),
    /// Those of the system.
    System,
}

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// No token.
    None,
    /// The content of a file, without the blanks around it.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The roots can't be used.
    #[error("the roots to check `{address}` with can't be used: {reason}")]
    Roots {
        /// The server.
        address: ServerAddress,
        /// What is wrong.
        reason: String,
    },
    /// The token can't be used.
    #[error("the token for `{address}` can't be used: {reason}")]
    Token {
        /// The server.
        address: ServerAddress,
        /// What is wrong.
        reason: String,
    },
    /// A token would be readable on the way.
    #[error("`{address}` speaks plain text, so no token is sent there; use `https://`, or configure no token")]
    TokenWithoutTls {
        /// The server.
        address: ServerAddress,
    },
    /// An extra header isn't one.
    #[error("`{name}` can't be sent as a header: {reason}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// No TCP connection.
    #[error("can't connect to `{address}`: {reason}")]
    Tcp {
        /// The server.
        address: ServerAddress,
        /// What the system answered.
        reason: String,
    },
    /// No TLS on it.
    #[error("no TLS with `{address}`: {reason}")]
    Tls {
        /// The server.
        address: ServerAddress,
        /// What is wrong.
        reason: String,
    },
    /// No HTTP/2 on it.
    #[error("no HTTP/2 with `{address}`: {reason}")]
    Http2 {
        /// The server.
        address: ServerAddress,
        /// What is wrong.
        reason: String,
    },
    /// It took too long.
    #[error("no connection to `{address}` within {after:?}")]
    Timeout {
        /// The server.
        address: ServerAddress,
        /// How long it was waited for.
        after: std::time::Duration,
    },
}

// === impl Endpoint ===

impl Endpoint {
    /// A server with these roots; no token, no headers, no certificate of our own.
    #[must_use]
    pub fn new(address: ServerAddress, roots: Roots) -> Self {
        Self {
            address,
            roots,
            alternative_server_name: None,
            token: Token::None,
            headers: Vec::new(),
            client_certificate: None,
        }
    }

    /// The metadata of a call: token and extra headers. Blocks on the token's file.
    pub(crate) fn metadata(&self) -> Result<MetadataMap, ConnectError> {
        let mut metadata = MetadataMap::new();
        if self.headers.len() > MAX_EXTRA_HEADERS {
            return Err(ConnectError::Header { name: "XDS_HEADER_*".into(), reason: "more than 64 are configured" });
        }
        for (name, value) in &self.headers {
            let wrong = |reason| ConnectError::Header { name: name.clone(), reason };
            let lower = name.to_ascii_lowercase();
            if RESERVED.contains(&lower.as_str()) || lower.starts_with("grpc-") {
                return Err(wrong("gRPC uses it itself"));
            }
            let key = MetadataKey::<Ascii>::from_bytes(lower.as_bytes()).map_err(|_| wrong("its name is malformed"))?;
            let mut value =
                value.parse::<AsciiMetadataValue>().map_err(|_| wrong("its value isn't printable ASCII"))?;
            if lower == "authorization" {
                if self.token != Token::None {
                    return Err(wrong("a token is configured too; keep one of the two"));
                }
                self.confidential()?;
                value.set_sensitive(true);
            }
            metadata.append(key, value);
        }
        if let Some(value) = self.bearer()? {
            metadata.insert("authorization", value);
        }
        Ok(metadata)
    }

    fn bearer(&self) -> Result<Option<AsciiMetadataValue>, ConnectError> {
        let wrong = |reason: String| ConnectError::Token { address: self.address.clone(), reason };
        let token = match &self.token {
            Token::None => return Ok(None),
            Token::Literal(token) => token.clone(),
            Token::File(path) => read_text(path).map_err(wrong)?,
        };
        self.confidential()?;
        let token = token.trim();
        if token.is_empty() {
            return Err(wrong("it is empty".into()));
        }
        let mut value = AsciiMetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| wrong("it holds bytes that can't stand in a header".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// What the roots' file holds now, to see whether it was replaced; nothing for other roots, or if it can't be read.
    /// Blocks.
    pub(crate) fn roots_text(&self) -> Option<String> {
        match &self.roots {
            Roots::File(path) => read_text(path).ok(),
            Roots::Inline(_) | Roots::System => None,
        }
    }

    fn confidential(&self) -> Result<(), ConnectError> {
        if self.address.is_tls() || self.address.is_loopback() {
            Ok(())
        } else {
            Err(ConnectError::TokenWithoutTls { address: self.address.clone() })
        }
    }

    /// How to speak TLS with it; nothing for plain text. Blocks on the roots' file.
    pub(crate) fn tls(&self) -> Result<Option<(ServerName<'static>, ClientConfig)>, ConnectError> {
        if !self.address.is_tls() {
            return Ok(None);
        }
        let wrong = |reason: String| ConnectError::Tls { address: self.address.clone(), reason };
        let name = |text: &str| {
            ServerName::try_from(text.to_owned()).map_err(|_| wrong(format!("`{text}` is not a server's name")))
        };
        let server_name = name(self.address.host())?;
        let alternative = self.alternative_server_name.as_deref().map(name).transpose()?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(self.read_roots()?);
        let verifier = EitherName::new(roots, &provider, alternative)
            .map_err(|reason| ConnectError::Roots { address: self.address.clone(), reason })?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| wrong(error.to_string()))?
            // Not less than the usual check: chain and name, the latter against two names.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.client_certificate {
            Some(resolver) => builder.with_client_cert_resolver(Arc::clone(resolver)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some((server_name, config)))
    }

    fn read_roots(&self) -> Result<RootCertStore, ConnectError> {
        let wrong = |reason: String| ConnectError::Roots { address: self.address.clone(), reason };
        let certificates = match &self.roots {
            Roots::System => {
                let loaded = rustls_native_certs::load_native_certs();
                if loaded.certs.is_empty() {
                    let reasons: Vec<_> = loaded.errors.iter().map(ToString::to_string).collect();
                    return Err(wrong(format!("the system has none ({})", reasons.join("; "))));
                }
                loaded.certs
            }
            Roots::Inline(pem) => certificates(pem.as_bytes()).map_err(wrong)?,
            Roots::File(path) => {
                let text = read_text(path).map_err(wrong)?;
                certificates(text.as_bytes()).map_err(|reason| wrong(format!("`{}`: {reason}", path.display())))?
            }
        };
        let mut roots = RootCertStore::empty();
        let strict = self.roots != Roots::System;
        for certificate in certificates {
            match roots.add(certificate) {
                Err(error) if strict => return Err(wrong(format!("one is no certificate: {error}"))),
                // Systems ship roots that are older than the rules they break.
                Err(_) | Ok(()) => {}
            }
        }
        if roots.is_empty() { Err(wrong("there are none".into())) } else { Ok(roots) }
    }
}

/// Headers that gRPC sets or that HTTP/2 forbids.
const RESERVED: &[&str] =
    &["connection", "content-length", "content-type", "host", "te", "trailer", "transfer-encoding"];

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("no certificate in PEM".into()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("not PEM: {error}")),
    }
}

/// A small text file, whole.
fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_CREDENTIAL_BYTES + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(format!("can't read `{}`: {error}", path.display())),
        Ok(_) if text.len() as u64 > MAX_CREDENTIAL_BYTES => {
            Err(format!("`{}` is larger than {MAX_CREDENTIAL_BYTES} bytes", path.display()))
        }
        Ok(_) => Ok(text),
    }
}

// === impl Roots ===

impl Roots {
    /// What `XDS_ROOT_CA` and `CA_ROOT_CA` hold: `SYSTEM`, a path, or PEM itself.
    #[must_use]
    pub fn from_setting(setting: &str) -> Self {
        if setting == SYSTEM {
            Self::System
        } else if setting.contains("-----BEGIN ") && !Path::new(setting).exists() {
            Self::Inline(setting.to_owned())
        } else {
            Self::File(setting.into())
        }
    }
}

// === impl Token ===

impl Token {
    /// What `AUTH_TOKEN` holds: a path or the token itself. What looks like a path is one even before the file is there.
    #[must_use]
    pub fn from_setting(setting: &str) -> Self {
        let is_path = ["/", "./", "../"].iter().any(|start| setting.starts_with(start)) || Path::new(setting).exists();
        match setting {
            "" => Self::None,
            path if is_path => Self::File(path.into()),
            token => Self::Literal(token.to_owned()),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

#[cfg(test)]
mod tests;
