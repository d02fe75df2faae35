//! Every bound of this crate, with its reason.

use std::time::Duration;

/// How long the node process may take to drain and leave after the first signal; then it's killed. The whole promise is
/// two seconds.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_millis(1_800);

/// How long the node process waits for the host process to answer one request for a socket.
pub const HOST_REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest message between the node process and the host process, bytes. A path is the longest there is.
pub const HOST_MESSAGE_BYTES: usize = 4_096;

/// How many paths the host process removes at the end.
pub const REMOVE_ON_EXIT_PATHS: usize = 8;

/// Longest line of a container's output that is passed on whole, bytes; a longer one is cut into pieces.
pub const OUTPUT_LINE_BYTES: usize = 8 * 1_024;

/// First wait before a container that ended is started again.
pub const RESTART_BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// Longest wait before a container that ended is started again.
pub const RESTART_BACKOFF_LONGEST: Duration = Duration::from_secs(10);

/// A container that ran this long has recovered: its next wait is the first one again.
pub const RESTART_BACKOFF_RESET: Duration = Duration::from_secs(10);

/// How long a container may take to end after SIGTERM when its pod goes away.
pub const TERMINATION_GRACE: Duration = Duration::from_millis(1_000);

/// How often processes are looked for while they are ended.
pub const KILL_POLL: Duration = Duration::from_millis(5);

/// How often SIGKILL is repeated before processes are reported as not ending (one [`KILL_POLL`] apart).
pub const KILL_ROUNDS: u32 = 100;

/// How often a readiness probe runs before its first success, whatever its period: a laptop's mesh should be ready when
/// its programs are.
pub const PROBE_FIRST_INTERVAL: Duration = Duration::from_millis(50);

/// Longest part of a probed program's HTTP answer that is read, bytes; the status line is in it or the probe fails.
pub const PROBE_RESPONSE_BYTES: usize = 1_024;

/// Longest message on the control socket, bytes.
pub const CONTROL_MESSAGE_BYTES: usize = 64 * 1_024;

/// Most file descriptors in one message on any socket of this crate: user, pid, net, mnt and uts.
pub const MESSAGE_FDS: usize = 5;

/// Most open connections on the control socket.
pub const CONTROL_CONNECTIONS: usize = 256;

/// How long a starting mesh waits for one of its name that is just going away.
pub const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Longest ZDS message, bytes, as other agents have it.
pub const ZDS_MESSAGE_BYTES: usize = 1_024;

/// Pods that one node proxy serves, those that still fail to start included; several times what a kubelet allows.
pub const ZDS_PODS: usize = 4_096;

/// How often a proxy tries again to serve a pod whose listeners couldn't be made.
pub const ZDS_RETRY: Duration = Duration::from_secs(5);

/// First and longest wait before a proxy connects to its agent again; it doubles in between.
pub const ZDS_CONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(15));

/// First and longest wait after a connection that ended early; it doubles in between.
pub const ZDS_SESSION_BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(15));

/// How long either end may take to read a message, and a proxy to answer one.
pub const ZDS_TIMEOUT: Duration = Duration::from_secs(5);

/// Proxies connected to one agent at a time. An upgrade has two.
pub const ZDS_CONNECTIONS: usize = 8;

/// Shortest time between two connections that an agent takes.
pub const ZDS_ACCEPT_INTERVAL: Duration = Duration::from_millis(200);

/// Requests that wait for one proxy. Past it the proxy is cut off; it gets everything anew when it comes back.
pub const ZDS_QUEUE: usize = 2 * ZDS_PODS;
