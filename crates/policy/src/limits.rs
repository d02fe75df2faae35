//! Bounds, each with what happens past it.

/// Rules in one policy (the CRD's own bound). More: the policy is refused.
pub const MAX_RULES: usize = 512;

/// Entries of one `from`, `to` or `when` (the CRD's bound for the first two). More: the policy is refused.
pub const MAX_CLAUSES: usize = 512;

/// Values of one `serviceAccounts` or `notServiceAccounts` (the CRD's bound). More: the policy is refused.
pub const MAX_SERVICE_ACCOUNTS: usize = 16;

/// Length of one `serviceAccounts` value in bytes (the CRD's bound). More: the policy is refused.
pub const MAX_SERVICE_ACCOUNT_BYTES: usize = 320;

/// Length in bytes of a request target that is judged. More: the request is denied.
pub const MAX_TARGET_BYTES: usize = 64 * 1024;

/// Rules compared when a default deny looks for its nearest miss. Further ones aren't looked at, so that a denied
/// request costs no more than this, however many rules there are.
pub const MAX_RULES_COMPARED: usize = 256;

/// Expected values listed in a reason. Further ones are counted.
pub const MAX_VALUES_SHOWN: usize = 3;

/// Bytes of one value shown in a reason. The rest is cut.
pub const MAX_SHOWN_BYTES: usize = 128;

/// Bytes of a path that are kept on the stack while it is read. A longer one is kept on the heap.
pub const INLINE_PATH_BYTES: usize = 512;
