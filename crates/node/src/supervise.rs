//! A pod's containers: started, restarted, probed, ended.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::limits::{
    PROBE_FIRST_INTERVAL, RESTART_BACKOFF_FIRST, RESTART_BACKOFF_LONGEST, RESTART_BACKOFF_RESET, TERMINATION_GRACE,
};
use crate::pod::PodNamespaces;
use crate::probe::{self, Probe};
use crate::process::{self, Exit, OutputLine, Process, ProcessSpec, Stream};
use crate::reaper::Reaper;

/// Lines of output that wait for their receiver, per container; then the program waits.
const OUTPUT_QUEUE: usize = 64;

/// Which ends of a container bring it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Every one.
    #[default]
    Always,
    /// All but exit code 0.
    OnFailure,
    /// None.
    Never,
}

/// A container that is a process.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its name in the pod.
    pub name: String,
    /// Program and arguments (`command` and `args`).
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub working_dir: Option<PathBuf>,
    /// When it's ready; as soon as it runs if none.
    pub readiness: Option<Probe>,
}

/// One line of a container's output, or of what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLine {
    /// The pod's name.
    pub pod: Arc<str>,
    /// The container's name.
    pub container: Arc<str>,
    /// Where it was written.
    pub stream: Stream,
    /// The line.
    pub text: String,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStatus {
    /// It runs.
    pub running: bool,
    /// It runs and its probe succeeds.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// What its probe says, if it fails.
    pub probe_failure: Option<String>,
}

/// What a pod's containers are doing, in the order of their specs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodStatus {
    /// Each container.
    pub containers: Vec<ContainerStatus>,
}

/// Runs a pod's containers until it's stopped or dropped.
#[derive(Debug)]
pub struct Supervisor {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    status: watch::Receiver<PodStatus>,
}

// === impl Supervisor ===

impl Supervisor {
    /// Starts the containers, on the current tokio runtime. Their output goes to `output`.
    pub fn start(
        reaper: &Reaper,
        pod: &Arc<PodNamespaces>,
        containers: Vec<ContainerSpec>,
        restart: RestartPolicy,
        output: &mpsc::Sender<ContainerLine>,
    ) -> Self {
        let stop = CancellationToken::new();
        let initial = PodStatus { containers: vec![ContainerStatus::default(); containers.len()] };
        let (publish, status) = watch::channel(initial);
        let mut tasks = JoinSet::new();
        let pod_name: Arc<str> = pod.name().into();
        for (index, spec) in containers.into_iter().enumerate() {
            let container = Container {
                reaper: reaper.clone(),
                pod: Arc::clone(pod),
                pod_name: Arc::clone(&pod_name),
                container_name: spec.name.as_str().into(),
                spec,
                restart,
                index,
                publish: publish.clone(),
                output: output.clone(),
            };
            tasks.spawn(container.run(stop.clone()));
        }
        Self { stop, tasks, status }
    }

    /// What the containers are doing, now and as it changes.
    pub fn status(&self) -> watch::Receiver<PodStatus> {
        self.status.clone()
    }

    /// Ends the containers: asks, waits [`TERMINATION_GRACE`], then insists.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
        // The tasks end their processes first, and hold nothing of this.
        self.tasks.detach_all();
    }
}

// === impl PodStatus ===

impl PodStatus {
    /// Every container is ready. A pod without containers is: it waits for `ambit run`.
    pub fn ready(&self) -> bool {
        self.containers.iter().all(|container| container.ready)
    }
}

struct Container {
    reaper: Reaper,
    pod: Arc<PodNamespaces>,
    pod_name: Arc<str>,
    container_name: Arc<str>,
    spec: ContainerSpec,
    restart: RestartPolicy,
    index: usize,
    publish: watch::Sender<PodStatus>,
    output: mpsc::Sender<ContainerLine>,
}

impl Container {
    async fn run(self, stop: CancellationToken) {
        let mut backoff = RESTART_BACKOFF_FIRST;
        loop {
            let started = Instant::now();
            let exit = match self.start() {
                Ok(process) => match self.supervise(process, &stop).await {
                    Some(exit) => exit,
                    None => return,
                },
                Err(error) => {
                    self.say(error.to_string()).await;
                    // What a shell says when a program can't be run.
                    Exit::Code(127)
                }
            };
            self.update(|status| {
                *status = ContainerStatus { restarts: status.restarts, last_exit: Some(exit), ..Default::default() };
            });
            if !self.restart.applies(exit) {
                self.say(format!("ended with {exit}")).await;
                return;
            }
            if started.elapsed() >= RESTART_BACKOFF_RESET {
                backoff = RESTART_BACKOFF_FIRST;
            }
            self.say(format!("ended with {exit}; starts again in {backoff:?}")).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(RESTART_BACKOFF_LONGEST);
            self.update(|status| status.restarts += 1);
        }
    }

    fn start(&self) -> Result<Process, process::SpawnError> {
        let spec = ProcessSpec {
            argv: self.spec.command.clone(),
            env: self.spec.env.clone(),
            working_dir: self.spec.working_dir.clone(),
        };
        let (send, receive) = mpsc::channel(OUTPUT_QUEUE);
        let process = process::spawn(&self.reaper, &self.pod, &spec, Some(send))?;
        tokio::spawn(pass_on(
            receive,
            Arc::clone(&self.pod_name),
            Arc::clone(&self.container_name),
            self.output.clone(),
        ));
        let ready = self.spec.readiness.is_none();
        self.update(|status| {
            status.running = true;
            status.ready = ready;
        });
        Ok(process)
    }

    /// Waits until the container ends; `None` when it was ended because the pod goes away.
    async fn supervise(&self, mut process: Process, stop: &CancellationToken) -> Option<Exit> {
        let exit = tokio::select! {
            exit = process.wait() => Some(exit),
            () = self.probe() => None,
            () = stop.cancelled() => None,
        };
        if exit.is_none() {
            process.signal(Signal::TERM);
            if tokio::time::timeout(TERMINATION_GRACE, process.wait()).await.is_err() {
                process.signal(Signal::KILL);
                process.wait().await;
            }
            self.update(|status| *status = ContainerStatus { restarts: status.restarts, ..Default::default() });
        }
        process.end_group();
        exit
    }

    /// Keeps the readiness up to date; never returns.
    async fn probe(&self) {
        let Some(probe) = &self.spec.readiness else { return std::future::pending().await };
        tokio::time::sleep(probe.initial_delay).await;
        let (mut successes, mut failures, mut was_ready) = (0_u32, 0_u32, false);
        loop {
            let result = probe::attempt(probe, &self.reaper, &self.pod).await;
            (successes, failures) =
                if result.is_ok() { (successes.saturating_add(1), 0) } else { (0, failures.saturating_add(1)) };
            if successes >= probe.success_threshold.max(1) {
                was_ready = true;
                self.set_ready(true, None);
            } else if failures >= probe.failure_threshold.max(1) {
                self.set_ready(false, result.err());
            }
            let wait = if was_ready { probe.period } else { probe.period.min(PROBE_FIRST_INTERVAL) };
            tokio::time::sleep(wait).await;
        }
    }

    fn set_ready(&self, ready: bool, failure: Option<String>) {
        self.update(|status| {
            status.ready = ready;
            status.probe_failure = failure;
        });
    }

    fn update(&self, change: impl FnOnce(&mut ContainerStatus)) {
        self.publish.send_if_modified(|pod| {
            let Some(status) = pod.containers.get_mut(self.index) else { return false };
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    async fn say(&self, text: String) {
        let line = ContainerLine {
            pod: Arc::clone(&self.pod_name),
            container: Arc::clone(&self.container_name),
            stream: Stream::Stderr,
            text,
        };
        // Nobody listens at the end of the mesh.
        let _ = self.output.send(line).await;
    }
}

async fn pass_on(
    mut lines: mpsc::Receiver<OutputLine>,
    pod: Arc<str>,
    container: Arc<str>,
    output: mpsc::Sender<ContainerLine>,
) {
    while let Some(OutputLine { stream, text }) = lines.recv().await {
        let line = ContainerLine { pod: Arc::clone(&pod), container: Arc::clone(&container), stream, text };
        if output.send(line).await.is_err() {
            return;
        }
    }
}

// === impl RestartPolicy ===

impl RestartPolicy {
    fn applies(self, exit: Exit) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !exit.success(),
            Self::Never => false,
        }
    }
}

impl fmt::Display for ContainerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} | {}", self.pod, self.container, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_knows_its_ends() {
        let ends = [Exit::Code(0), Exit::Code(3), Exit::Signal(9)];
        for (policy, wanted) in [
            (RestartPolicy::Always, [true, true, true]),
            (RestartPolicy::OnFailure, [false, true, true]),
            (RestartPolicy::Never, [false, false, false]),
        ] {
            assert_eq!(ends.map(|exit| policy.applies(exit)), wanted, "{policy:?}");
        }
    }
}
