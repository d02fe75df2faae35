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

/// How long others wait after the leader's last renewal of its Lease.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long after a renewal a replica counts itself the leader.
pub const LEASE_RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Pause between renewals of the Lease.
pub const LEASE_RETRY: Duration = Duration::from_secs(2);
/// Longest wait for the API server's answer about the Lease.
pub const LEASE_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a Lease of another is waited for, whatever it says.
pub const MAX_LEASE: Duration = Duration::from_secs(300);
/// Longest name of a Lease's holder.
pub const MAX_HOLDER_BYTES: usize = 256;

/// Largest token reviewed, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Reviews of tokens under way at the API server.
pub const MAX_CONCURRENT_REVIEWS: usize = 32;
/// Requests that may wait for a review.
pub const MAX_WAITING_REVIEWS: usize = 4096;
/// Of these, from one address. A node proxy asks for its pods' identities with one token, which is one review.
pub const MAX_REVIEWS_PER_PEER: usize = 256;
/// Longest wait for a review.
pub const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an accepted token is taken for good without asking again; never beyond its own end.
pub const REVIEW_KEPT: Duration = Duration::from_secs(30);
/// How long a refused token is refused without asking again.
pub const REFUSAL_KEPT: Duration = Duration::from_secs(1);
/// Tokens whose reviews are remembered.
pub const MAX_KNOWN_TOKENS: usize = 4096;

/// Largest file of a CA read, in bytes.
pub const MAX_CA_FILE_BYTES: usize = 1024 * 1024;
/// Time without an event after which a folder of CA files counts as written.
pub const CA_FOLDER_QUIET: Duration = Duration::from_millis(100);
/// Time after which it is read even while more events come.
pub const CA_FOLDER_AT_MOST: Duration = Duration::from_secs(2);
/// Time between two looks at the root's age.
pub const ROOT_CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause after a failure to read or write the root's Secret.
pub const ROOT_RETRY: Duration = Duration::from_secs(2);
/// Longest wait for one answer of the API server about the root's Secret.
pub const ROOT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries to write the root's Secret against other writers.
pub const MAX_ROOT_TRIES: usize = 5;
/// ConfigMaps of the trust bundle written at one time.
pub const MAX_CONCURRENT_CONFIG_MAPS: u16 = 8;
/// First pause after a failure to write one; it doubles up to [`MAX_CONFIG_MAP_PAUSE`].
pub const MIN_CONFIG_MAP_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after failures to write one.
pub const MAX_CONFIG_MAP_PAUSE: Duration = Duration::from_secs(60);
/// Longest wait for one answer of the API server about one.
pub const CONFIG_MAP_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest review of an object that the API server may send, in bytes: two objects of the largest size that it keeps.
pub const MAX_REVIEW_BYTES: usize = 8 * 1024 * 1024;
/// Connections to the webhook at once; more wait.
pub const MAX_WEBHOOK_CONNECTIONS: usize = 64;
/// Longest time for a handshake, a request's head, and a whole review.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection to the webhook; API servers keep them.
pub const WEBHOOK_CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Time that reviews have to come to their end when the webhook stops.
pub const WEBHOOK_DRAIN: Duration = Duration::from_secs(5);
/// Pause after a connection that couldn't be taken.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Errors that the refusal of one object names.
pub const MAX_REVIEW_ERRORS: usize = 16;
/// Warnings that come with the answer about one object.
pub const MAX_REVIEW_WARNINGS: usize = 16;
/// Longest wait for one answer of the API server about the webhook's registration.
pub const REGISTRATION_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure to write it.
pub const REGISTRATION_RETRY: Duration = Duration::from_secs(2);

/// Objects of the API that may wait to be taken in; more wait at the API server.
pub const MAX_QUEUED_OBJECTS: usize = 1024;
/// Of these, how many are taken in at once.
pub const MAX_OBJECTS_AT_ONCE: usize = 1024;
/// First pause after a kind couldn't be listed or watched; it doubles up to [`MAX_WATCH_PAUSE`].
pub const MIN_WATCH_PAUSE: Duration = Duration::from_millis(200);
/// Longest such pause.
pub const MAX_WATCH_PAUSE: Duration = Duration::from_secs(5);
/// Pause before the API server is asked again for a kind that it didn't have.
pub const DISCOVERY_PAUSE: Duration = Duration::from_secs(5);

/// Gateways whose waypoints are made at one time.
pub const MAX_CONCURRENT_WAYPOINTS: u16 = 8;
/// Longest wait for one answer of the API server about a waypoint.
pub const WAYPOINT_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after a waypoint couldn't be made; it doubles up to [`MAX_WAYPOINT_PAUSE`].
pub const MIN_WAYPOINT_PAUSE: Duration = Duration::from_millis(200);
/// Longest such pause.
pub const MAX_WAYPOINT_PAUSE: Duration = Duration::from_secs(60);
/// Time between two looks at the class of waypoints.
pub const CLASS_INTERVAL: Duration = Duration::from_secs(30);
/// Longest name of a Service's port, in bytes (Kubernetes).
pub const MAX_PORT_NAME_BYTES: usize = 63;

/// Conditions written at one time.
pub const MAX_CONCURRENT_CONDITIONS: usize = 8;
/// Longest wait for one answer of the API server about a condition.
pub const CONDITION_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after conditions couldn't be written; it doubles up to [`MAX_CONDITION_PAUSE`].
pub const MIN_CONDITION_PAUSE: Duration = Duration::from_millis(250);
/// Longest such pause.
pub const MAX_CONDITION_PAUSE: Duration = Duration::from_secs(60);
/// How long changes are gathered before conditions are looked at again.
pub const CONDITIONS_GATHERED: Duration = Duration::from_millis(200);
