//! The pod's labels, as the downward API writes them into a file: `key="value"`, one a line.

use std::{fs::File, io::Read, path::Path};

use crate::proxy::settings::SettingsError;

/// The label that names the Gateway which a pod belongs to.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Largest file read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The name of the Gateway that the pod belongs to.
///
/// # Errors
/// When the file isn't there, or doesn't say.
pub fn gateway_name(path: &Path) -> Result<String, SettingsError> {
    let wrong = |reason: String| SettingsError(format!("GATEWAY_NAME isn't set, and `{}` {reason}", path.display()));
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    read.map_err(|error| wrong(format!("can't be read: {error}")))?;
    label(&text, GATEWAY_NAME_LABEL).ok_or_else(|| wrong(format!("has no label `{GATEWAY_NAME_LABEL}`")))
}

fn label(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    // The values of labels need no escapes.
    let value = value.strip_prefix('"')?.strip_suffix('"')?;
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_found_among_the_labels() {
        let text = "app=\"x\"\ngateway.networking.k8s.io/gateway-name=\"waypoint\"\nz=\"\"\n";
        assert_eq!(label(text, GATEWAY_NAME_LABEL).as_deref(), Some("waypoint"));
        for text in [
            "",
            "z=\"\"",
            "gateway.networking.k8s.io/gateway-name=\"\"",
            "gateway.networking.k8s.io/gateway-name-x=\"y\"",
        ] {
            assert_eq!(label(text, GATEWAY_NAME_LABEL), None, "{text}");
        }
        let error = gateway_name(Path::new("/nowhere/labels")).expect_err("there is none").to_string();
        assert!(error.contains("GATEWAY_NAME isn't set") && error.contains("/nowhere/labels"), "{error}");
    }
}
