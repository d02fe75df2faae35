//! The pods a proxy serves, as its agent tells it: the protocol without sockets.

use std::collections::{HashMap, HashSet};

use super::message::{Request, WorkloadInfo};
use crate::limits::ZDS_PODS;

/// Does what the table decides. See [`super::Proxies`].
pub(super) trait Serve<N> {
    fn start(&mut self, uid: &str, info: &WorkloadInfo, network: &N) -> Result<(), String>;
    fn stop(&mut self, uid: &str);
}

/// The pods. They outlive the connection over which they were told.
#[derive(Debug)]
pub(super) struct Table<N> {
    running: HashMap<Box<str>, Pod<N>>,
    /// Those that couldn't be started.
    pending: HashMap<Box<str>, Pod<N>>,
    /// Pods named since the agent connected, until it has named all.
    named: Option<HashSet<Box<str>>>,
    pub(super) started: u64,
    pub(super) stopped: u64,
}

#[derive(Debug)]
struct Pod<N> {
    info: WorkloadInfo,
    network: N,
}

/// The agent breaks the protocol. A new connection to it would go no better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OrderError {
    #[error("the agent sent a second snapshot on one connection")]
    SecondSnapshot,
    #[error("the agent asked to keep a pod after its snapshot")]
    LateKeep,
}

// === impl Table ===

impl<N: PartialEq> Table<N> {
    pub(super) fn new() -> Self {
        Self { running: HashMap::new(), pending: HashMap::new(), named: None, started: 0, stopped: 0 }
    }

    /// A connection begins: the agent will name every pod.
    pub(super) fn connected(&mut self) {
        self.named = Some(HashSet::new());
    }

    /// The agent has named all pods.
    pub(super) fn is_synced(&self) -> bool {
        self.named.is_none()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Those that couldn't be started.
    pub(super) fn pending_pods(&self) -> impl Iterator<Item = (&str, &WorkloadInfo)> {
        self.pending.iter().map(|(uid, pod)| (&**uid, &pod.info))
    }

    /// Does what the agent asks. The inner result is the answer to it.
    pub(super) fn handle(
        &mut self,
        request: Request<N>,
        proxies: &mut impl Serve<N>,
    ) -> Result<Result<(), String>, OrderError> {
        match request {
            Request::Add { uid, info, network } => Ok(self.add(uid, Pod { info, network }, proxies)),
            Request::Keep { uid } => match &mut self.named {
                Some(named) if named.len() >= ZDS_PODS => Ok(Err(full())),
                Some(named) => {
                    named.insert(uid);
                    Ok(Ok(()))
                }
                None => Err(OrderError::LateKeep),
            },
            Request::Del { uid } => {
                self.remove(&uid, proxies);
                Ok(Ok(()))
            }
            Request::SnapshotSent => match self.named.take() {
                Some(named) => {
                    self.reconcile(&named, proxies);
                    Ok(Ok(()))
                }
                None => Err(OrderError::SecondSnapshot),
            },
        }
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self, proxies: &mut impl Serve<N>) {
        for (uid, pod) in std::mem::take(&mut self.pending) {
            // It is pending again if it fails again, which whoever fails has logged.
            let _ = self.start(uid, pod, proxies);
        }
    }

    #[cfg(test)]
    fn uids(&self) -> Vec<&str> {
        let mut uids: Vec<&str> = self.running.keys().map(|uid| &**uid).collect();
        uids.sort_unstable();
        uids
    }

    fn add(&mut self, uid: Box<str>, pod: Pod<N>, proxies: &mut impl Serve<N>) -> Result<(), String> {
        let known = self.running.contains_key(&uid) || self.pending.contains_key(&uid);
        let named = self.named.as_ref().map_or(0, HashSet::len);
        if !known && (self.running.len() + self.pending.len()).max(named) >= ZDS_PODS {
            return Err(full());
        }
        if let Some(named) = &mut self.named {
            named.insert(uid.clone());
        }
        match self.running.get(&uid) {
            Some(running) if running.network == pod.network && running.info == pod.info => return Ok(()),
            // The pod was made anew under its old uid, or is somebody else now.
            Some(_) => self.stop(&uid, proxies),
            None => {}
        }
        self.pending.remove(&uid);
        self.start(uid, pod, proxies)
    }

    fn start(&mut self, uid: Box<str>, pod: Pod<N>, proxies: &mut impl Serve<N>) -> Result<(), String> {
        match proxies.start(&uid, &pod.info, &pod.network) {
            Ok(()) => {
                self.started += 1;
                self.running.insert(uid, pod);
                Ok(())
            }
            Err(reason) => {
                self.pending.insert(uid, pod);
                Err(reason)
            }
        }
    }

    fn remove(&mut self, uid: &str, proxies: &mut impl Serve<N>) {
        self.pending.remove(uid);
        match &mut self.named {
            // Before the snapshot is complete only its end stops pods, all together.
            Some(named) => {
                named.remove(uid);
            }
            None => self.stop(uid, proxies),
        }
    }

    fn stop(&mut self, uid: &str, proxies: &mut impl Serve<N>) {
        if self.running.remove(uid).is_some() {
            self.stopped += 1;
            proxies.stop(uid);
        }
    }

    fn reconcile(&mut self, named: &HashSet<Box<str>>, proxies: &mut impl Serve<N>) {
        self.pending.retain(|uid, _| named.contains(uid));
        let gone: Vec<Box<str>> = self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in gone {
            self.stop(&uid, proxies);
        }
    }
}

fn full() -> String {
    format!("the node proxy is at its limit of {ZDS_PODS} pods")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Notes what is started and stopped; fails as often as told.
    #[derive(Default)]
    struct Notes {
        log: Vec<String>,
        failures: VecDeque<&'static str>,
    }

    impl Serve<u8> for Notes {
        fn start(&mut self, uid: &str, _info: &WorkloadInfo, network: &u8) -> Result<(), String> {
            match self.failures.pop_front() {
                Some(reason) => Err(reason.to_owned()),
                None => {
                    self.log.push(format!("start {uid} in {network}"));
                    Ok(())
                }
            }
        }

        fn stop(&mut self, uid: &str) {
            self.log.push(format!("stop {uid}"));
        }
    }

    fn add(uid: &str, network: u8) -> Request<u8> {
        let info = WorkloadInfo { name: uid.to_owned(), namespace: "ns".to_owned(), service_account: "sa".to_owned() };
        Request::Add { uid: uid.into(), info, network }
    }

    fn keep(uid: &str) -> Request<u8> {
        Request::Keep { uid: uid.into() }
    }

    fn del(uid: &str) -> Request<u8> {
        Request::Del { uid: uid.into() }
    }

    const SNAPSHOT: Request<u8> = Request::SnapshotSent;

    fn synced(pods: &[(&str, u8)]) -> (Table<u8>, Notes) {
        let (mut table, mut notes) = (Table::new(), Notes::default());
        table.connected();
        for (uid, network) in pods {
            table.handle(add(uid, *network), &mut notes).expect("in order").expect("served");
        }
        table.handle(SNAPSHOT, &mut notes).expect("in order").expect("answered");
        notes.log.clear();
        (table, notes)
    }

    #[test]
    fn every_situation_of_the_protocol() {
        struct Case {
            name: &'static str,
            before: &'static [(&'static str, u8)],
            reconnect: bool,
            requests: Vec<Request<u8>>,
            log: &'static [&'static str],
            running: &'static [&'static str],
        }
        let case =
            |name, before, reconnect, requests, log, running| Case { name, before, reconnect, requests, log, running };
        let cases = [
            case("same uid, same namespace", &[("a", 1)], false, vec![add("a", 1)], &[], &["a"]),
            case(
                "same uid, other namespace",
                &[("a", 1)],
                false,
                vec![add("a", 2)],
                &["stop a", "start a in 2"],
                &["a"],
            ),
            case("a new pod", &[("a", 1)], false, vec![add("b", 2)], &["start b in 2"], &["a", "b"]),
            case("del after the snapshot", &[("a", 1)], false, vec![del("a")], &["stop a"], &[]),
            case("del of an unknown pod", &[("a", 1)], false, vec![del("b")], &[], &["a"]),
            case(
                "del before the snapshot stops with the snapshot",
                &[("a", 1), ("b", 2)],
                true,
                vec![add("a", 1), keep("b"), del("b"), SNAPSHOT],
                &["stop b"],
                &["a"],
            ),
            case("del before the snapshot alone stops nothing", &[("a", 1)], true, vec![del("a")], &[], &["a"]),
            case(
                "a reconnect keeps what is named and stops the rest",
                &[("a", 1), ("b", 2), ("c", 3)],
                true,
                vec![add("a", 1), keep("b"), SNAPSHOT],
                &["stop c"],
                &["a", "b"],
            ),
            case("a reconnect alone stops nothing", &[("a", 1)], true, vec![], &[], &["a"]),
            case("keep of a pod that isn't served", &[], true, vec![keep("a"), SNAPSHOT], &[], &[]),
            case("an empty snapshot stops all", &[("a", 1)], true, vec![SNAPSHOT], &["stop a"], &[]),
        ];
        for Case { name, before, reconnect, requests, log, running } in cases {
            let (mut table, mut notes) = synced(before);
            if reconnect {
                table.connected();
            }
            for request in requests {
                table.handle(request, &mut notes).expect(name).expect(name);
            }
            assert_eq!(notes.log, log, "{name}");
            assert_eq!(table.uids(), running, "{name}");
        }
    }

    #[test]
    fn a_pod_that_fails_stays_pending_until_it_can_be_served() {
        let (mut table, mut notes) = synced(&[]);
        notes.failures = VecDeque::from(["port taken", "port taken"]);
        assert_eq!(table.handle(add("a", 1), &mut notes), Ok(Err("port taken".to_owned())));
        table.retry(&mut notes);
        assert_eq!((table.pending(), table.running()), (1, 0), "the second try failed too");
        table.retry(&mut notes);
        assert_eq!((table.pending(), table.running()), (0, 1));
        table.retry(&mut notes);
        assert_eq!(notes.log, ["start a in 1"], "what is served isn't started again");
    }

    #[test]
    fn a_pending_pod_is_forgotten_when_it_is_deleted_or_not_named_any_more() {
        for (reconnect, request) in [(false, del("a")), (true, del("a")), (true, SNAPSHOT)] {
            let (mut table, mut notes) = synced(&[]);
            notes.failures = VecDeque::from(["port taken"]);
            table.handle(add("a", 1), &mut notes).expect("in order").expect_err("fails");
            if reconnect {
                table.connected();
            }
            table.handle(request, &mut notes).expect("in order").expect("answered");
            table.retry(&mut notes);
            assert_eq!((table.pending(), table.running()), (0, 0));
        }
    }

    #[test]
    fn an_agent_that_breaks_the_order_is_told_so() {
        let (mut table, mut notes) = synced(&[]);
        assert_eq!(table.handle(SNAPSHOT, &mut notes), Err(OrderError::SecondSnapshot));
        assert_eq!(table.handle(keep("a"), &mut notes), Err(OrderError::LateKeep));
    }

    #[test]
    fn past_the_limit_the_newest_pod_is_refused() {
        for connected in [false, true] {
            let (mut table, mut notes) = synced(&[]);
            if connected {
                table.connected();
            }
            for number in 0..ZDS_PODS {
                table.handle(add(&number.to_string(), 1), &mut notes).expect("in order").expect("below the limit");
            }
            table.handle(add("more", 1), &mut notes).expect("in order").expect_err("past the limit");
            table.handle(add("0", 2), &mut notes).expect("in order").expect("a known pod is no new one");
            assert_eq!(table.running(), ZDS_PODS);
            if connected {
                table.handle(keep("more"), &mut notes).expect("in order").expect_err("past the limit");
            }
        }
    }
}
