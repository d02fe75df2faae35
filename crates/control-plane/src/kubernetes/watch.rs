//! One kind, listed and watched for as long as the control plane runs.

use std::{fmt::Debug, time::Duration};

use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::{
    Api, Client, Error,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
    error::DiscoveryError,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    convert::{self, Item},
    kinds::{Kind, Place},
};
use crate::limits::{DISCOVERY_PAUSE, MAX_WATCH_PAUSE, MIN_WATCH_PAUSE};

/// What has happened to the objects of a kind.
#[derive(Debug)]
pub(super) enum Event {
    /// These are all that there are.
    All(Kind, Vec<Item>),
    /// One is new or changed.
    Applied(Kind, Item),
    /// One is gone.
    Deleted(Kind, ambit_mesh::inputs::NamespacedName),
}

/// Pauses between tries: short, since a change may be waiting that takes a right away.
#[derive(Debug)]
struct Pauses(Duration);

/// Where events go.
struct Sink {
    kind: Kind,
    events: mpsc::Sender<Event>,
    /// What a list has so far.
    listed: Option<Vec<Item>>,
}

/// Watches a kind until `stop`. What happens to it reaches `events` in order; when that is full, the API server waits.
pub(super) async fn watch(
    client: Client,
    kind: Kind,
    cluster_id: String,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let mut sink = Sink { kind, events, listed: None };
    let watching = async {
        match kind {
            Kind::Namespace => sink.follow(Api::<Namespace>::all(client), convert::namespace).await,
            Kind::Service => sink.follow(Api::<Service>::all(client), convert::service).await,
            Kind::Pod => sink.follow(Api::<Pod>::all(client), |pod| convert::pod(pod, &cluster_id)).await,
            _ => sink.follow_custom(&client).await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watching => {}
    }
}

// === impl Sink ===

impl Sink {
    /// Waits until the API has the kind, and follows it. A kind that isn't defined has no objects; one whose definition went
    /// later keeps those that were read, until a list says otherwise.
    async fn follow_custom(&mut self, client: &Client) {
        let Some(place) = self.kind.place() else { return };
        let mut told = false;
        let (resource, api_version) = loop {
            match served(client, self.kind, &place).await {
                Ok(Some(found)) => break found,
                Ok(None) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(kind = self.kind.name(), "the API server doesn't have this kind yet");
                        if self.events.send(Event::All(self.kind, Vec::new())).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = self.kind.name(), %error, "the API server can't be asked for a kind")
                }
            }
            sleep(DISCOVERY_PAUSE).await;
        };
        let kind = self.kind.name();
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        self.follow(api, |object| convert::custom(object, kind, &api_version)).await;
    }

    async fn follow<K>(&mut self, api: Api<K>, convert: impl Fn(&K) -> Item)
    where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut changes = std::pin::pin!(watcher(api, watcher::Config::default()).backoff(Pauses(MIN_WATCH_PAUSE)));
        loop {
            let taken = match changes.try_next().await {
                Ok(Some(event)) => self.take(event, &convert).await,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(kind = self.kind.name(), %error, "a kind can't be watched; what was read stays in force");
                    true
                }
            };
            if !taken {
                return;
            }
        }
    }

    /// False once nobody wants to know any more.
    async fn take<K: kube::Resource>(&mut self, event: watcher::Event<K>, convert: &impl Fn(&K) -> Item) -> bool {
        let event = match event {
            watcher::Event::Init => {
                self.listed = Some(Vec::new());
                return true;
            }
            watcher::Event::InitApply(object) => {
                self.listed.get_or_insert_default().push(convert(&object));
                return true;
            }
            watcher::Event::InitDone => Event::All(self.kind, self.listed.take().unwrap_or_default()),
            watcher::Event::Apply(object) => Event::Applied(self.kind, convert(&object)),
            watcher::Event::Delete(object) => Event::Deleted(self.kind, convert::name_of(object.meta())),
        };
        self.events.send(event).await.is_ok()
    }
}

/// The version that the API server has of a kind; nothing if it has none that is known here.
async fn served(client: &Client, kind: Kind, place: &Place) -> Result<Option<(ApiResource, String)>, Error> {
    for version in place.versions {
        let wanted = GroupVersionKind::gvk(place.group, version, kind.name());
        match kube::discovery::pinned_kind(client, &wanted).await {
            Ok(_) => {
                let resource = ApiResource::from_gvk_with_plural(&wanted, place.plural);
                return Ok(Some((resource, wanted.api_version())));
            }
            Err(Error::Discovery(DiscoveryError::MissingKind(_) | DiscoveryError::MissingApiGroup(_))) => {}
            Err(Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

// === impl Pauses ===

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(MAX_WATCH_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = MIN_WATCH_PAUSE;
    }
}
