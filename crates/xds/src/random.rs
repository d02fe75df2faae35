//! Randomness that spreads what would otherwise happen at once.

use rustls::crypto::aws_lc_rs;

/// From 0 to 1, evenly. Without randomness: 1, so that a pause is never too short.
pub(crate) fn fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::default_provider().secure_random.fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}
