//! The task that owns the state: what has happened since it looked last is taken in at once.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use ambit_api::request_authentication::KeySource;
use ambit_mesh::authentication::Fetched;
use ambit_xds::{DeltaResponse, server::Resources};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{kinds::Kind, state::State, watch::Event};
use crate::{
    conditions::Write,
    keys::{self, Inside, Wanted},
    limits::{CONDITIONS_GATHERED, MAX_OBJECTS_AT_ONCE},
};

pub(super) struct Actor {
    pub(super) state: State,
    pub(super) events: mpsc::Receiver<Event>,
    /// Names of the mesh that the task which fetches keys asks for.
    pub(super) asked: mpsc::Receiver<Question>,
    pub(super) found: mpsc::Receiver<(KeySource, Fetched)>,
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) resources: Arc<Resources>,
    pub(super) lacking: watch::Sender<Vec<&'static str>>,
    pub(super) differing: watch::Sender<Arc<Vec<Write>>>,
    /// Whether anybody will write conditions; else they needn't be computed.
    pub(super) leads: watch::Receiver<bool>,
}

/// The pods behind a name and port of the mesh.
pub(super) struct Question {
    host: String,
    port: u16,
    answer: oneshot::Sender<Option<Vec<SocketAddr>>>,
}

/// Asks the task.
pub(super) struct Endpoints(pub(super) mpsc::Sender<Question>);

// === impl Actor ===

impl Actor {
    /// Runs until nothing is watched any more.
    pub(super) async fn run(mut self) {
        let mut events = Vec::new();
        let mut look_at: Option<Instant> = None;
        let mut leads = self.leads.clone();
        loop {
            let look = async {
                match look_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                taken = self.events.recv_many(&mut events, MAX_OBJECTS_AT_ONCE) => {
                    if taken == 0 {
                        return;
                    }
                    let deltas = self.state.take(std::mem::take(&mut events));
                    self.tell(&deltas);
                    look_at = look_at.or_else(|| Some(Instant::now() + CONDITIONS_GATHERED));
                }
                () = look => {
                    look_at = None;
                    if *leads.borrow() {
                        self.differing.send_replace(Arc::new(self.state.differing()));
                    }
                }
                Ok(()) = leads.changed() => look_at = Some(Instant::now()),
                Some((source, fetched)) = self.found.recv() => {
                    if let Some(note) = keys::note(self.state.inputs(), &source, &fetched) {
                        tracing::info!("{note}");
                    }
                    let deltas = self.state.take_keys(source, fetched);
                    self.tell(&deltas);
                }
                Some(Question { host, port, answer }) = self.asked.recv() => {
                    // Whoever asked may have gone.
                    let _ = answer.send(keys::endpoints(self.state.inputs(), &host, port));
                }
            }
        }
    }

    fn tell(&self, deltas: &[DeltaResponse]) {
        if !deltas.is_empty() {
            self.resources.apply(deltas);
        }
        let lacking: Vec<_> = self.state.lacking().into_iter().map(Kind::name).collect();
        self.lacking.send_if_modified(|before| {
            let is_news = *before != lacking;
            *before = lacking;
            is_news
        });
        let wanted = self.state.wanted_keys();
        self.wanted.send_if_modified(|before| {
            let is_news = *before != wanted;
            *before = wanted;
            is_news
        });
    }
}

// === impl Endpoints ===

impl Inside for Endpoints {
    fn endpoints(&self, host: String, port: u16) -> Pin<Box<dyn Future<Output = Option<Vec<SocketAddr>>> + Send>> {
        let questions = self.0.clone();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            questions.send(Question { host, port, answer }).await.ok()?;
            answered.await.ok().flatten()
        })
    }
}
