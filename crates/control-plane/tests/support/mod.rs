//! A local cluster on real files with a real proxy store behind it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use ambit_control_plane::local::{Config, Event, PodCommand, PodPlan, StartError, Started, start};
use ambit_mesh::{Store, view::ServiceKey};
use ambit_policy::{ConnectionFacts, Decision, Options, RequestFacts};
use ambit_xds::channel;
use tokio::time::timeout;

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Mesh {
    pub local: Started,
    pub store: Arc<Store>,
}

pub fn mlflow_example() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/mlflow")
}

/// Starts on these paths.
pub fn on_paths(paths: Vec<PathBuf>) -> Result<Mesh, StartError> {
    let store = Store::new(Options::default());
    let (sender, receiver) = channel::channel();
    tokio::spawn(Arc::clone(&store).run(receiver));
    let loaded = ambit_api::load(&paths);
    Ok(Mesh { local: start(Config::new(paths), loaded, sender)?, store })
}

/// Starts on one text, without files.
pub fn on_text(text: &str) -> Result<Mesh, StartError> {
    let store = Store::new(Options::default());
    let (sender, receiver) = channel::channel();
    tokio::spawn(Arc::clone(&store).run(receiver));
    let config = Config { watch: false, ..Config::new(Vec::new()) };
    Ok(Mesh { local: start(config, ambit_api::load_text("mesh.yaml", text), sender)?, store })
}

impl Mesh {
    /// The next pod to make.
    pub async fn added(&mut self) -> Arc<PodPlan> {
        match timeout(PATIENCE, self.local.pods.recv()).await.expect("in time").expect("alive") {
            PodCommand::Add(plan) => plan,
            PodCommand::Remove { uid } => panic!("`{uid}` is removed instead"),
        }
    }

    /// The next pod to remove.
    pub async fn removed(&mut self) -> Arc<str> {
        match timeout(PATIENCE, self.local.pods.recv()).await.expect("in time").expect("alive") {
            PodCommand::Remove { uid } => uid,
            PodCommand::Add(plan) => panic!("`{}` is added instead", plan.uid),
        }
    }

    /// The next event that isn't [`Event::Applied`].
    pub async fn event(&mut self) -> Event {
        loop {
            match timeout(PATIENCE, self.local.events.recv()).await.expect("in time").expect("alive") {
                Event::Applied { .. } => {}
                event => return event,
            }
        }
    }

    /// Waits until the proxies see what is asked for.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&ambit_mesh::View) -> bool) {
        let mut changes = self.store.changes();
        let wait = async {
            while !holds(&self.store.load()) {
                changes.changed().await.expect("the store lives");
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// What the waypoint of the example says to a request.
    pub fn waypoint_verdict(&self, account: &str, method: &str, path: &str) -> Decision {
        let key = ServiceKey {
            namespace: "kagenti-system".into(),
            hostname: "mlflow.kagenti-system.svc.cluster.local".into(),
        };
        let view = self.store.load();
        let bundle = view.waypoint("kagenti-system", "mlflow-waypoint").expect("the waypoint");
        let identity = format!("spiffe://cluster.local/ns/kagenti-system/sa/{account}").parse().expect("an identity");
        let connection = ConnectionFacts::new([10, 244, 0, 99].into(), [10, 96, 1, 1].into(), 5000);
        let residual = bundle.services[&key].for_connection(&connection.with_identity(Some(identity)));
        let request = RequestFacts::new(method, path, "mlflow:5000");
        residual.with_reason(residual.decide(&request), Some(&request))
    }
}
