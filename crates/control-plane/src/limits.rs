//! Bounds on what one laptop runs, and on what is fetched for it.

use std::time::Duration;

/// Pods, declared ones, waypoints and sessions together.
pub const MAX_PODS: usize = 1024;
/// Replicas of one Deployment.
pub const MAX_REPLICAS: usize = 128;
/// Services and waypoints together.
pub const MAX_SERVICES: usize = 4096;
/// Containers of one pod.
pub const MAX_CONTAINERS: usize = 32;
/// Requests that may wait for the control plane.
pub const MAX_QUEUED_REQUESTS: usize = 128;
/// Pod commands that may wait for the node side; more wait in the control plane.
pub const MAX_QUEUED_POD_COMMANDS: usize = 256;
/// Events that a slow listener may be behind before it misses some.
pub const MAX_QUEUED_EVENTS: usize = 256;

/// Fetches of issuers' keys under way.
pub const MAX_KEY_FETCHES: usize = 8;
/// Fetched keys that wait to be taken up.
pub const MAX_QUEUED_KEYS: usize = 64;
/// Longest time that one fetch may take, whatever its rule says.
pub const MAX_KEY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long fetched keys are used before they are fetched again.
pub const KEY_REFRESH: Duration = Duration::from_secs(20 * 60);
/// Pause after a first failure; it doubles with each.
pub const MIN_KEY_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause after failures.
pub const MAX_KEY_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// Shortest pause between two fetches of the same keys, whatever has changed.
pub const MIN_KEY_PAUSE: Duration = Duration::from_millis(500);
/// Addresses of one key server that are tried.
pub const MAX_KEY_ADDRESSES: usize = 3;
/// Times that keys may have moved.
pub const MAX_KEY_REDIRECTS: usize = 3;
