//! Certificates from a CA over the network (`spec/ztunnel.md` 8).

use std::{sync::Arc, time::Duration};

use ambit_identity::{BoxFuture, CertificateSource, ChainError, IssuedChain, SourceError, SpiffeId, peer_identity};
use http::uri::PathAndQuery;
use tokio::{sync::Mutex, time::timeout};
use tonic::{Code, client::Grpc, metadata::MetadataMap};
use tonic_prost::ProstCodec;

use super::{
    CLUSTER_ID_HEADER, CREATE_CERTIFICATE_PATH, CertificateRequest, CertificateResponse, IMPERSONATED_IDENTITY,
};
use crate::{
    grpc::{Channel, ConnectError, Endpoint},
    limits::{DEFAULT_CERTIFICATE_TTL, MAX_SIGNED_BYTES, SIGNING_TIMEOUT},
    protobuf::Struct,
};

/// Asks a CA over gRPC. Requests share one connection, which is made anew when it ends or when the file with the roots
/// changes. The token's file is read for every request.
#[derive(Debug)]
pub struct CaClient {
    options: Arc<CaOptions>,
    connection: Mutex<Option<Connection>>,
}

/// What a CA client is told.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// The CA.
    pub endpoint: Endpoint,
    /// The cluster whose token we have (header `clusterid`); not said if empty.
    pub cluster_id: String,
    /// Life to ask for.
    pub ttl: Duration,
    /// Ask for identities of others, as a node proxy must; otherwise the CA takes the identity of the token.
    pub impersonate: bool,
}

/// Why there is no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CaClientError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The CA doesn't believe who we are, or that we may ask for this identity (Istio's says the same to both).
    #[error("the CA doesn't accept our token, or doesn't let us ask for `{identity}`: {reason}")]
    Unauthenticated {
        /// The identity asked for.
        identity: SpiffeId,
        /// What the CA said.
        reason: String,
    },
    /// The CA knows us and doesn't allow it.
    #[error("the CA doesn't let us ask for `{identity}`: {reason}")]
    PermissionDenied {
        /// The identity asked for.
        identity: SpiffeId,
        /// What the CA said.
        reason: String,
    },
    /// The CA can't sign now, or the connection broke.
    #[error("the CA isn't available: {reason}")]
    Unavailable {
        /// What was said.
        reason: String,
    },
    /// No answer in time.
    #[error("the CA didn't answer within {after:?}")]
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// Any other refusal.
    #[error("the CA refused to sign for `{identity}`: {code}: {reason}")]
    Refused {
        /// The identity asked for.
        identity: SpiffeId,
        /// Name of the status.
        code: String,
        /// What the CA said.
        reason: String,
    },
    /// The answer can't be read.
    #[error("the CA's answer for `{identity}` can't be read: {error}")]
    Answer {
        /// The identity asked for.
        identity: SpiffeId,
        /// What is wrong with it.
        error: ChainError,
    },
}

#[derive(Debug)]
struct Connection {
    channel: Channel,
    /// The roots' file as it was.
    roots: Option<String>,
}

// === impl CaOptions ===

impl CaOptions {
    /// Asks for identities of others and for 24 h.
    #[must_use]
    pub fn new(endpoint: Endpoint, cluster_id: String) -> Self {
        Self { endpoint, cluster_id, ttl: DEFAULT_CERTIFICATE_TTL, impersonate: true }
    }
}

// === impl CaClient ===

impl CaClient {
    /// A client that connects when it is first asked.
    #[must_use]
    pub fn new(options: CaOptions) -> Self {
        Self { options: Arc::new(options), connection: Mutex::new(None) }
    }

    /// Asks for a certificate for `id` over the key of `csr_pem` (PKCS#10, PEM).
    ///
    /// # Errors
    /// When the CA can't be reached, refuses, or answers with something else. Whether the answer is for the request's key
    /// and may be used is for the caller to check.
    pub async fn sign(&self, id: &SpiffeId, csr_pem: String) -> Result<IssuedChain, CaClientError> {
        let signed = async {
            let (channel, fresh) = self.channel().await?;
            match self.call(channel, id, &csr_pem).await {
                // The connection may have gone stale since its last use; once is enough to find out.
                Err(CaClientError::Unavailable { .. }) if !fresh => {
                    *self.connection.lock().await = None;
                    let (channel, _) = self.channel().await?;
                    self.call(channel, id, &csr_pem).await
                }
                result => result,
            }
        };
        timeout(SIGNING_TIMEOUT, signed).await.unwrap_or(Err(CaClientError::Timeout { after: SIGNING_TIMEOUT }))
    }

    /// The connection, and whether it was made just now.
    async fn channel(&self) -> Result<(Channel, bool), CaClientError> {
        let mut connection = self.connection.lock().await;
        let options = Arc::clone(&self.options);
        let roots = tokio::task::spawn_blocking(move || options.endpoint.roots_text()).await.unwrap_or_default();
        let old = connection.as_ref().filter(|old| !old.channel.is_closed());
        if let Some(old) = old.filter(|old| old.roots == roots) {
            return Ok((old.channel.clone(), false));
        }
        match Channel::connect(&self.options.endpoint).await {
            Ok((channel, _)) => {
                *connection = Some(Connection { channel: channel.clone(), roots });
                Ok((channel, true))
            }
            Err(error) => match old {
                // Roots that were just replaced by ones that don't fit don't take away what works.
                Some(old) => {
                    tracing::warn!(%error, "the CA's new roots don't work; staying with the old connection");
                    Ok((old.channel.clone(), true))
                }
                None => Err(error.into()),
            },
        }
    }

    async fn call(&self, channel: Channel, id: &SpiffeId, csr_pem: &str) -> Result<IssuedChain, CaClientError> {
        let mut request = tonic::Request::new(self.message(id, csr_pem));
        *request.metadata_mut() = self.metadata().await?;
        let origin = self.options.endpoint.address.origin().unwrap_or_default();
        let mut grpc = Grpc::with_origin(channel, origin).max_decoding_message_size(MAX_SIGNED_BYTES);
        grpc.ready().await.map_err(|error| CaClientError::Unavailable { reason: error.to_string() })?;
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE_PATH);
        let answer = grpc.unary(request, path, codec).await.map_err(|status| refused(id, &status))?;
        let unreadable = |error| CaClientError::Answer { identity: id.clone(), error };
        let issued = IssuedChain::from_response(&answer.into_inner().cert_chain).map_err(unreadable)?;
        match peer_identity(&issued.chain) {
            Some(got) if got == *id => Ok(issued),
            Some(got) => Err(unreadable(ChainError::Identity { expected: id.clone(), got })),
            None => Err(unreadable(ChainError::NoIdentity { expected: id.clone() })),
        }
    }

    fn message(&self, id: &SpiffeId, csr_pem: &str) -> CertificateRequest {
        let impersonated = self
            .options
            .impersonate
            .then(|| Struct::from_iter([(IMPERSONATED_IDENTITY.to_owned(), serde_json::Value::from(id.to_string()))]));
        CertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(self.options.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: impersonated,
        }
    }

    async fn metadata(&self) -> Result<MetadataMap, CaClientError> {
        let options = Arc::clone(&self.options);
        let read = tokio::task::spawn_blocking(move || options.endpoint.metadata()).await;
        let mut metadata = read.map_err(|error| CaClientError::Unavailable { reason: error.to_string() })??;
        if !self.options.cluster_id.is_empty() {
            let value = self.options.cluster_id.parse().map_err(|_| ConnectError::Header {
                name: CLUSTER_ID_HEADER.into(),
                reason: "the cluster's name isn't printable ASCII",
            })?;
            metadata.insert(CLUSTER_ID_HEADER, value);
        }
        Ok(metadata)
    }
}

fn refused(id: &SpiffeId, status: &tonic::Status) -> CaClientError {
    let identity = id.clone();
    let reason: String = status.message().chars().take(512).collect();
    match status.code() {
        Code::Unauthenticated => CaClientError::Unauthenticated { identity, reason },
        Code::PermissionDenied => CaClientError::PermissionDenied { identity, reason },
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted => {
            CaClientError::Unavailable { reason }
        }
        code => CaClientError::Refused { identity, code: format!("{code:?}"), reason },
    }
}

impl CertificateSource for CaClient {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        let id = id.clone();
        Box::pin(async move { self.sign(&id, csr_pem).await.map_err(SourceError::from) })
    }
}

// === impl CaClientError ===

impl From<CaClientError> for SourceError {
    fn from(error: CaClientError) -> Self {
        let reason = error.to_string();
        match error {
            CaClientError::Connect(_) | CaClientError::Unavailable { .. } | CaClientError::Timeout { .. } => {
                Self::Unreachable { reason }
            }
            CaClientError::Answer { error, .. } => Self::Answer(error),
            CaClientError::Unauthenticated { .. }
            | CaClientError::PermissionDenied { .. }
            | CaClientError::Refused { .. } => Self::Refused { reason },
        }
    }
}
