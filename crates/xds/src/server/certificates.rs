//! `IstioCertificateService` on a CA in this process (`spec/control-plane.md` 6.1).

use std::{future::Future, pin::Pin, sync::Arc, task, time::Duration};

use ambit_identity::{Ca, CaError, SpiffeId, certificate_pem};
use tonic::Status;

use super::{Authorize, Peer};
use crate::{
    ca::{CertificateRequest, CertificateResponse, IMPERSONATED_IDENTITY},
    limits::DEFAULT_CERTIFICATE_TTL,
    protobuf::{Struct, value::Kind},
};

/// What a peer without a good token is told, whatever the reason.
const NOT_AUTHENTICATED: &str = "request authenticate failure";
/// What a peer is told that may not ask for an identity, whatever the reason.
const NOT_IMPERSONATED: &str = "request impersonation authentication failure";

/// The method.
#[derive(Clone)]
pub(super) struct Certificates {
    pub(super) ca: Arc<Ca>,
    pub(super) authorize: Arc<dyn Authorize>,
}

// === impl Certificates ===

impl Certificates {
    async fn sign(self, request: tonic::Request<CertificateRequest>) -> Result<CertificateResponse, Status> {
        let peer = Peer::of(&request)?;
        let CertificateRequest { csr, validity_duration, metadata } = request.into_inner();
        let denied = |reason: &str, message: &str| {
            tracing::warn!(peer = %peer.address, %reason, "no certificate");
            Err(Status::unauthenticated(message))
        };
        let impersonated = impersonated(metadata.as_ref());
        // Who the peer is comes first, even if what it asks for can't be read.
        let asked = impersonated.as_ref().ok().and_then(Option::as_ref);
        let id = match self.authorize.certificate(&peer, asked).await {
            Ok(id) => id,
            Err(error) => {
                let message =
                    if asked.is_some() && !error.unauthenticated { NOT_IMPERSONATED } else { NOT_AUTHENTICATED };
                return denied(&error.reason, message);
            }
        };
        if let Err(reason) = impersonated {
            return denied(&reason, NOT_IMPERSONATED);
        }
        let ttl = match u64::try_from(validity_duration) {
            Ok(0) | Err(_) => DEFAULT_CERTIFICATE_TTL,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        let issued = self.ca.issue(&csr, &id, ttl).map_err(|error| {
            tracing::warn!(peer = %peer.address, %error, "no certificate");
            status(&error)
        })?;
        let mut cert_chain: Vec<_> = issued.chain.iter().map(certificate_pem).collect();
        cert_chain.push(issued.roots.iter().map(certificate_pem).collect());
        Ok(CertificateResponse { cert_chain })
    }
}

/// The identity that the request names; nothing if it names none. Anything else under that name is an error.
fn impersonated(metadata: Option<&Struct>) -> Result<Option<SpiffeId>, String> {
    match metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY)).map(|value| &value.kind) {
        None => Ok(None),
        Some(Some(Kind::Text(text))) if text.is_empty() => Ok(None),
        Some(Some(Kind::Text(text))) => text.parse().map(Some).map_err(|error| format!("{error}")),
        Some(_) => Err(format!("`{IMPERSONATED_IDENTITY}` isn't text")),
    }
}

fn status(error: &CaError) -> Status {
    let text = format!("CSR signing error ({error})");
    match error {
        CaError::Request { .. } | CaError::Ttl { .. } | CaError::ForeignIdentity { .. } => {
            Status::invalid_argument(text)
        }
        // Files and keys of this process are nobody else's business.
        _ => Status::internal("CSR signing error"),
    }
}

impl tower_service::Service<tonic::Request<CertificateRequest>> for Certificates {
    type Response = tonic::Response<CertificateResponse>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Status>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move { method.sign(request).await.map(tonic::Response::new) })
    }
}
