//! Istio's ProxyConfig, where an installation gives one: the variable PROXY_CONFIG, and `defaultConfig` of the mesh's own
//! file. Of its many fields five concern a proxy of the mesh; variables of their own come first.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use ambit_api::Document;
use serde_json::{Map, Value};

use super::{ControlPlane, Operations, SettingsError, WorkerCount};

/// Where an installation mounts the mesh's own settings.
const MESH_FILE: &str = "./etc/istio/config/mesh";
/// Largest file or variable read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// What a ProxyConfig says of a proxy of the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyConfig {
    discovery_address: Option<String>,
    admin_port: Option<u16>,
    stats_port: Option<u16>,
    concurrency: Option<usize>,
    /// Without the prefix `ISTIO_META_`.
    metadata: BTreeMap<String, Value>,
}

/// Reads the mesh's file and PROXY_CONFIG, which comes first.
///
/// # Errors
/// When one of them is there and can't be read.
pub fn read() -> Result<ProxyConfig, SettingsError> {
    let mut config = match read_file(Path::new(MESH_FILE))? {
        Some(text) => match mapping(MESH_FILE, &text)?.remove("defaultConfig") {
            Some(Value::Object(fields)) => ProxyConfig::from_fields(MESH_FILE, &fields)?,
            _ => ProxyConfig::default(),
        },
        None => ProxyConfig::default(),
    };
    if let Ok(text) = std::env::var("PROXY_CONFIG") {
        config.override_with(ProxyConfig::from_text("PROXY_CONFIG", &text)?);
    }
    Ok(config)
}

fn read_file(path: &Path) -> Result<Option<String>, SettingsError> {
    let wrong = |reason: String| SettingsError(format!("`{}`: {reason}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut text = String::new();
    file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(text))
}

fn mapping(name: &str, text: &str) -> Result<Map<String, Value>, SettingsError> {
    if text.len() > MAX_BYTES {
        return Err(SettingsError(format!("{name} is larger than {MAX_BYTES} bytes")));
    }
    match Document::<Value>::read(name, text) {
        Ok(document) => match document.object {
            Value::Object(fields) => Ok(fields),
            _ => Err(SettingsError(format!("{name} is no mapping"))),
        },
        Err(diagnostics) => Err(SettingsError(ambit_api::render(&diagnostics, false))),
    }
}

// === impl ProxyConfig ===

impl ProxyConfig {
    fn from_text(name: &str, text: &str) -> Result<Self, SettingsError> {
        match text.trim() {
            "" => Ok(Self::default()),
            text => Self::from_fields(name, &mapping(name, text)?),
        }
    }

    fn from_fields(name: &str, fields: &Map<String, Value>) -> Result<Self, SettingsError> {
        let wrong = |key: &str, wanted: &str| SettingsError(format!("{name}: `{key}` isn't {wanted}"));
        let number = |key: &str| match fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(key, "a number")),
        };
        let port = |key: &str| match number(key)? {
            Some(number) => u16::try_from(number).map(Some).map_err(|_| wrong(key, "a port")),
            None => Ok(None),
        };
        let concurrency = match number("concurrency")? {
            Some(count @ 0..=1_024) => usize::try_from(count).ok(),
            Some(_) => return Err(wrong("concurrency", "a number of threads up to 1024")),
            None => None,
        };
        let discovery_address = match fields.get("discoveryAddress") {
            None | Some(Value::Null) => None,
            Some(Value::String(address)) => Some(address.clone()),
            Some(_) => return Err(wrong("discoveryAddress", "a text")),
        };
        let metadata = match fields.get("proxyMetadata") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::Object(entries)) => entries
                .iter()
                .map(|(key, value)| (key.strip_prefix("ISTIO_META_").unwrap_or(key).to_owned(), value.clone()))
                .collect(),
            Some(_) => return Err(wrong("proxyMetadata", "a mapping")),
        };
        let (admin_port, stats_port) = (port("proxyAdminPort")?, port("statsPort")?);
        Ok(Self { discovery_address, admin_port, stats_port, concurrency, metadata })
    }

    fn override_with(&mut self, first: Self) {
        self.discovery_address = first.discovery_address.or(self.discovery_address.take());
        self.admin_port = first.admin_port.or(self.admin_port);
        self.stats_port = first.stats_port.or(self.stats_port);
        self.concurrency = first.concurrency.or(self.concurrency);
        self.metadata.extend(first.metadata);
    }

    /// Fills in what has no variable of its own set, and returns what it adds to the node's metadata.
    pub fn fill_in(
        self,
        control_plane: &mut ControlPlane,
        operations: &mut Operations,
        threads: &mut Option<WorkerCount>,
    ) -> BTreeMap<String, Value> {
        let Self { discovery_address, admin_port, stats_port, concurrency, metadata } = self;
        let xds_address = &mut control_plane.xds_address;
        *xds_address = xds_address.take().or(discovery_address);
        operations.admin_port = operations.admin_port.or(admin_port);
        operations.stats_port = operations.stats_port.or(stats_port);
        *threads = threads.or(concurrency.map(WorkerCount::Count));
        metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_fields_are_read_and_the_others_left_alone() {
        let text = "discoveryAddress: istiod.x.svc:15012\nproxyAdminPort: 15500\nstatsPort: 15520\nconcurrency: 3\n\
                    proxyMetadata: {ISTIO_META_A: b, C: d}\nholdApplicationUntilProxyStarts: true\n";
        let mut config = ProxyConfig::from_text("PROXY_CONFIG", text).expect("valid");
        assert_eq!(config.discovery_address.as_deref(), Some("istiod.x.svc:15012"));
        assert_eq!((config.admin_port, config.stats_port, config.concurrency), (Some(15_500), Some(15_520), Some(3)));
        assert_eq!(config.metadata.keys().collect::<Vec<_>>(), ["A", "C"]);
        config.override_with(ProxyConfig::from_text("PROXY_CONFIG", "statsPort: 1").expect("valid"));
        assert_eq!((config.admin_port, config.stats_port), (Some(15_500), Some(1)), "what comes first wins");
        assert_eq!(ProxyConfig::from_text("PROXY_CONFIG", " ").expect("empty"), ProxyConfig::default());
    }

    #[test]
    fn what_is_no_value_is_refused_by_name() {
        for (text, key) in [
            ("statsPort: 70000", "statsPort"),
            ("proxyAdminPort: x", "proxyAdminPort"),
            ("concurrency: -1", "concurrency"),
            ("concurrency: 100000", "concurrency"),
            ("discoveryAddress: [a]", "discoveryAddress"),
            ("proxyMetadata: x", "proxyMetadata"),
            ("- a", "PROXY_CONFIG"),
            ("a: [", "PROXY_CONFIG"),
        ] {
            let error = ProxyConfig::from_text("PROXY_CONFIG", text).expect_err(text).to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
