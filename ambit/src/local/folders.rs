//! Where the mesh keeps its keys between starts.

use std::{env, path::PathBuf};

/// The folder for what must last: `$XDG_STATE_HOME/ambit`, else `~/.local/state/ambit`, else one of the user's own under
/// `/var/tmp` (accounts like `nobody` have no home).
pub fn state(mesh: &str) -> PathBuf {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").filter(|home| home.is_dir()).map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from(format!("/var/tmp/ambit-{}", rustix::process::geteuid().as_raw())));
    base.join("ambit").join(mesh)
}
