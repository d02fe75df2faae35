//! Bounds on what one laptop runs.

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
