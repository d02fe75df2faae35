//! One question about a request, by whichever protocol its provider speaks.

use ambit_mesh::view::Ask;
use http::HeaderMap;

use super::{
    answer::Answer,
    body::Excerpt,
    client::{Client, Failure},
    grpc, http as over_http,
};
use crate::{
    request::Checked,
    session::{Session, Standing},
};

/// What a provider is asked about.
#[derive(Debug)]
pub(super) struct Check<'a> {
    pub(super) session: &'a Session,
    pub(super) standing: &'a Standing,
    pub(super) checked: &'a Checked,
    /// As the application would get them.
    pub(super) headers: &'a HeaderMap,
    /// Nothing if the provider isn't to see the body.
    pub(super) body: Option<Excerpt>,
}

/// Says whether the body in a question is the whole.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// Asks.
///
/// # Errors
/// When there is no answer that can be used.
pub(super) async fn ask(client: &Client, check: &Check<'_>) -> Result<Answer, Failure> {
    match &client.authorizer().ask {
        Ask::Grpc => grpc::ask_about_request(client, check).await,
        Ask::Http(options) => over_http::ask(client, options, check).await,
    }
}
