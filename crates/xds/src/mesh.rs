//! Package `ambit.mesh.v1`: what holds for the whole mesh and changes what policies mean.

/// The mesh's configuration. Its resource name is [`NAME`]; while there is none, everything has its default.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mesh {
    /// The mesh's own trust domain, then its aliases.
    #[prost(string, repeated, tag = "1")]
    pub trust_domains: Vec<String>,
    /// Namespace whose policies apply to the whole mesh.
    #[prost(string, tag = "2")]
    pub root_namespace: String,
    /// How paths are read before they are compared.
    #[prost(enumeration = "PathNormalization", tag = "3")]
    pub path_normalization: i32,
    /// The external authorizers that policies may name.
    #[prost(message, repeated, tag = "4")]
    pub providers: Vec<Provider>,
    /// Policies of one target may name different ones.
    #[prost(bool, tag = "5")]
    pub several_providers: bool,
}

/// Name of the only resource of this type.
pub const NAME: &str = "mesh";

/// An external authorizer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Provider {
    /// Name, as policies write it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// It is asked by a gRPC call; otherwise by an HTTP request.
    #[prost(bool, tag = "2")]
    pub grpc: bool,
}

/// How paths are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PathNormalization {
    /// Under every reading.
    AllReadings = 0,
    /// As sent.
    None = 1,
    /// Istio's default.
    Base = 2,
    /// And repeated slashes merged.
    MergeSlashes = 3,
    /// And escaped slashes taken as slashes first.
    DecodeAndMergeSlashes = 4,
}
