//! What a waypoint lacks to serve: configuration, and a certificate of its own. Told to probes, with the reason.

use std::{sync::Arc, time::Duration};

use ambit_identity::{CertificateStore, SpiffeId};
use ambit_mesh::Store;
use ambit_xds::client::{Handle, State};
use tokio::{sync::watch, time::sleep};

use super::settings::Complete;
use crate::proxy::readiness::{Part, Readiness};

/// How often it is looked whether there still is a valid certificate. Renewal is the certificate store's business.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(5);
/// How often it is asked for while there is none. The certificate store has pauses of its own between its attempts.
const CERTIFICATE_RETRY: Duration = Duration::from_millis(250);

/// Tells when nothing is lacking for the first time.
#[derive(Debug)]
pub struct Lacking {
    configured: watch::Receiver<bool>,
    certified: watch::Receiver<bool>,
}

// === impl Lacking ===

impl Lacking {
    /// Keeps readiness up to date from now on, on the current runtime.
    pub fn watch(
        complete: &Complete,
        discovery: &Handle,
        store: &Arc<Store>,
        certificates: &Arc<CertificateStore>,
        readiness: &Readiness,
    ) -> Self {
        let (tell, configured) = watch::channel(false);
        let gateway = (complete.namespace.clone(), complete.gateway.clone());
        tokio::spawn(watch_configuration(gateway, discovery.clone(), Arc::clone(store), readiness.clone(), tell));
        let (tell, certified) = watch::channel(false);
        let identity = complete.identity.clone();
        tokio::spawn(watch_certificate(identity, Arc::clone(certificates), readiness.clone(), tell));
        Self { configured, certified }
    }

    /// Waits until nothing is lacking.
    pub async fn nothing(&mut self) {
        for told in [&mut self.configured, &mut self.certified] {
            if told.wait_for(|there| *there).await.is_err() {
                // Its task is gone, and with it the runtime.
                return std::future::pending().await;
            }
        }
    }
}

async fn watch_configuration(
    (namespace, gateway): (String, String),
    discovery: Handle,
    store: Arc<Store>,
    readiness: Readiness,
    tell: watch::Sender<bool>,
) {
    let (mut states, mut changes) = (discovery.states(), store.changes());
    let mut before = None;
    loop {
        changes.mark_unchanged();
        let state = states.borrow_and_update().clone();
        let has_bundle = store.load().waypoint(&namespace, &gateway).is_some();
        let lack = lack_of_configuration(&state, has_bundle)
            .map(|reason| format!("{reason} (waypoint `{namespace}/{gateway}`)"));
        if before.as_ref() != Some(&lack) {
            match &lack {
                None => {
                    readiness.set(Part::State, true);
                    tell.send_replace(true);
                }
                Some(reason) => {
                    tracing::warn!(%reason, "no configuration to serve by");
                    readiness.lack(Part::State, reason);
                }
            }
            before = Some(lack);
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Once there is something to serve by, a control plane that goes away makes nothing worse.
fn lack_of_configuration(state: &State, has_bundle: bool) -> Option<String> {
    if !state.synced && state.restored.is_none() {
        return Some(match &state.failure {
            Some(failure) => failure.clone(),
            None if state.connected => "not all of the control plane's configuration is in force yet".to_owned(),
            None => "the control plane hasn't answered yet".to_owned(),
        });
    }
    (!has_bundle).then(|| "the control plane has nothing for this waypoint: is there such a Gateway?".to_owned())
}

async fn watch_certificate(
    identity: SpiffeId,
    certificates: Arc<CertificateStore>,
    readiness: Readiness,
    tell: watch::Sender<bool>,
) {
    loop {
        match certificates.get(&identity).await {
            Ok(_) => {
                readiness.set(Part::Certificate, true);
                tell.send_replace(true);
                sleep(CERTIFICATE_CHECK).await;
            }
            Err(error) => {
                readiness.lack(Part::Certificate, error.to_string());
                sleep(CERTIFICATE_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_is_in_force_stays_enough_and_everything_else_is_a_lack() {
        let failed = || Some("Unauthenticated: authentication failure".to_owned());
        let synced = State { connected: true, synced: true, ..State::default() };
        let restored = State { restored: Some(SystemTime::now()), failure: failed(), ..State::default() };
        for state in [&synced, &State { connected: false, failure: failed(), ..synced.clone() }, &restored] {
            assert_eq!(lack_of_configuration(state, true), None, "{state:?}");
            let lack = lack_of_configuration(state, false).expect("nothing is known of this waypoint");
            assert!(lack.contains("such a Gateway"), "{lack}");
        }
        for (state, reason) in [
            (State::default(), "hasn't answered"),
            (State { connected: true, ..State::default() }, "not all"),
            (State { failure: failed(), ..State::default() }, "authentication failure"),
        ] {
            let lack = lack_of_configuration(&state, true).expect("the state isn't whole");
            assert!(lack.contains(reason), "{lack}");
        }
    }
}
