//! Values as operators write them.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use serde_json::Value as Json;

/// `namespace/name/service-account`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadName {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Service account.
    pub service_account: String,
}

/// A count of worker threads, or a share of the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerCount {
    /// So many; 0 is one per core.
    Count(usize),
    /// So many hundredths of the cores.
    Percent(u32),
}

/// Environment variables that start with `prefix`, without it, in order of their names.
pub fn prefixed(prefix: &str) -> BTreeMap<String, String> {
    from_environment(prefix, std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))))
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.into_string().ok()?)))
        .collect()
}

fn from_environment<V>(prefix: &str, variables: impl Iterator<Item = (String, V)>) -> BTreeMap<String, V> {
    let ours = variables.filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value)));
    ours.filter(|(name, _)| !name.is_empty()).collect()
}

/// Metadata of the node: `ISTIO_META_*` as text, `ISTIO_METAJSON_*` as JSON.
///
/// # Errors
/// When a value of the second kind is no JSON.
pub fn metadata() -> Result<BTreeMap<String, Json>, String> {
    let mut metadata: BTreeMap<String, Json> =
        prefixed("ISTIO_META_").into_iter().map(|(name, value)| (name, Json::String(value))).collect();
    for (name, value) in prefixed("ISTIO_METAJSON_") {
        let json = serde_json::from_str(&value)
            .map_err(|error| format!("ISTIO_METAJSON_{name} is no JSON: {error}; quote a plain text"))?;
        metadata.insert(name, json);
    }
    Ok(metadata)
}

/// `5m`, `1h30m`, `250ms`; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write it like `30s`, `5m` or `1h30m`");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    if let Ok(seconds) = rest.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|letter: char| letter.is_ascii_digit() || letter == ' ').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => Duration::from_nanos(1),
            "us" | "µs" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" | "sec" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3_600),
            "d" => Duration::from_secs(86_400),
            _ => return Err(wrong()),
        };
        let part = unit.checked_mul(count).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = rest[letters..].trim_start();
    }
    Ok(total)
}

/// The same, above zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be above zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A share of processors: `2`, `1.5`, `500m`; rounded up to whole ones.
pub fn cores(text: &str) -> Result<usize, String> {
    let wrong = || format!("`{text}` is no number of processors; write it like `2`, `1.5` or `500m`");
    let (digits, scale) = match text.strip_suffix('m') {
        Some(digits) => (digits, 1_000.0),
        None => (text, 1.0),
    };
    let count: f64 = digits.parse().map_err(|_| wrong())?;
    let whole = (count / scale).ceil();
    if !(0.0..=65_536.0).contains(&whole) {
        return Err(wrong());
    }
    // In range by the check above.
    Ok(whole as usize)
}

// === impl WorkloadName ===

impl FromStr for WorkloadName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(name), Some(account), None)
                if ![namespace, name, account].iter().any(|part| part.is_empty()) =>
            {
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                Ok(Self { namespace, name, service_account: account.to_owned() })
            }
            _ => Err(format!("`{text}` is not NAMESPACE/NAME/SERVICE_ACCOUNT")),
        }
    }
}

// === impl WorkerCount ===

impl FromStr for WorkerCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a number of threads nor a share of the cores like `50%`");
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
            None => match text.parse() {
                Ok(count @ 0..=1_024) => Ok(Self::Count(count)),
                _ => Err(wrong()),
            },
        }
    }
}
