//! Every bound of this crate.

use std::time::Duration;

/// Life of a workload certificate, unless asked otherwise.
pub const DEFAULT_CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest life the CA signs; more is refused, not shortened.
pub const MAX_CERTIFICATE_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// How far a certificate's start lies in the past, for peers whose clock is behind.
pub const NOT_BEFORE_SLACK: Duration = Duration::from_secs(120);
/// Life of a self-made root.
pub const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of the certificate that a new signer signs on trial.
pub const PROBE_TTL: Duration = Duration::from_secs(60);
/// Life of a server's certificate.
pub const SERVER_CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);
/// Largest certificate request read, in bytes.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Largest root certificate or key file read, in bytes.
pub const MAX_STATE_FILE_BYTES: u64 = 64 * 1024;
/// How long a start waits for another start that holds the state directory's lock.
pub const STATE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a CA's answer.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait of one caller for a certificate: for its turn, and for the answer.
pub const DEMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests to the CA at one time.
pub const MAX_CONCURRENT_FETCHES: usize = 8;
/// Of these, how many are kept free for certificates that a connection waits for.
pub const RESERVED_FETCHES: usize = 2;
/// First pause after a failed fetch; it doubles up to [`MAX_BACKOFF`].
pub const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause after a failed fetch.
pub const MAX_BACKOFF: Duration = Duration::from_secs(150);
/// Shortest time between a certificate and its successor, however short its life is.
pub const MIN_RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// Longest sleep between two looks at a certificate's renewal time. What sets a clock by leaps is noticed sooner (see
/// [`CLOCK_CHECK_INTERVAL`]); this is for one that goes wrong slowly.
pub const MAX_TIMER_SLICE: Duration = Duration::from_secs(60);
/// Time between two looks at the clocks.
pub const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How far the clocks may come apart between two looks before that counts as a sleep, or as a clock that was set.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);
/// How long after waking the network is given to wake, too: failures are retried after [`WAKE_PAUSE`].
pub const WAKE_WINDOW: Duration = Duration::from_secs(15);
/// Longest wait for a CA's answer after waking. A request that got lost must not hold up traffic for long.
pub const WAKE_FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed fetch while waking.
pub const WAKE_PAUSE: Duration = Duration::from_millis(300);
/// Identities the store keeps certificates for.
pub const MAX_IDENTITIES: usize = 4096;
/// Client configurations (one per set of expected identities) kept per certificate.
pub const MAX_CLIENT_CONFIGS: usize = 256;
/// Largest answer of a CA read, in bytes.
pub const MAX_CHAIN_BYTES: usize = 1024 * 1024;
/// Certificates of a chain, leaf and intermediates.
pub const MAX_CHAIN_CERTIFICATES: usize = 16;
/// Roots of a trust bundle.
pub const MAX_ROOTS: usize = 256;
/// Chains of peers that are remembered as verified; past it all are verified anew.
pub const MAX_VERIFIED_CHAINS: usize = 4096;
/// Identities looked for in a peer's certificate.
pub const MAX_PEER_IDENTITIES: usize = 16;
/// How long a root counts on after the CA has left it out of its bundle: half of a certificate's life, by when every
/// peer has renewed.
pub const ROOT_OVERLAP: Duration = Duration::from_secs(12 * 3600);
/// Other trust domains with roots of their own.
pub const MAX_FOREIGN_TRUST_DOMAINS: usize = 64;
/// Largest file of revocation lists read, in bytes.
pub const MAX_CRL_BYTES: usize = 16 * 1024 * 1024;
/// Revocation lists in one file.
pub const MAX_CRLS: usize = 256;
/// Time between two looks at the file of revocation lists.
pub const CRL_CHECK_INTERVAL: Duration = Duration::from_secs(1);
