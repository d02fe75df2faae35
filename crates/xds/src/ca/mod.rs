//! Package `istio.v1.auth` (`spec/control-plane.md` 6.1): certificates signed over the network.

mod client;

pub use client::{CaClient, CaClientError, CaOptions};

use crate::protobuf::Struct;

/// Path of the one method.
pub const CREATE_CERTIFICATE_PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Member of [`CertificateRequest::metadata`] that names the identity a node proxy asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// Header that names the cluster whose tokens the caller has.
pub const CLUSTER_ID_HEADER: &str = "clusterid";

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS#10, PEM. Only its key counts.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Life asked for, in seconds; not positive: the CA's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// [`IMPERSONATED_IDENTITY`] and others.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// PEM: the leaf, each intermediate, and last the whole bundle of roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
