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
/// Largest certificate request read, in bytes.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Largest root certificate or key file read, in bytes.
pub const MAX_STATE_FILE_BYTES: u64 = 64 * 1024;
/// How long a start waits for another start that holds the state directory's lock.
pub const STATE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a CA's answer.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests to the CA at one time.
pub const MAX_CONCURRENT_FETCHES: usize = 8;
/// First pause after a failed fetch; it doubles up to [`MAX_BACKOFF`].
pub const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause after a failed fetch.
pub const MAX_BACKOFF: Duration = Duration::from_secs(150);
/// Longest sleep between two looks at the wall clock. A timer stands still while the machine sleeps; the wall clock
/// doesn't, so a renewal is late by at most this.
pub const MAX_TIMER_SLICE: Duration = Duration::from_secs(60);
/// Identities the store keeps certificates for.
pub const MAX_IDENTITIES: usize = 4096;
/// Client configurations (one per set of expected identities) kept per certificate.
pub const MAX_CLIENT_CONFIGS: usize = 256;
