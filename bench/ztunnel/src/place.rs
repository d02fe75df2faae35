//! Where a run keeps what it needs for a while.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ambit_node::Node;

use crate::{control::ControlPlane, stage::Director};

/// Folders and a runtime; the folder of sockets and keys goes with it.
pub(crate) struct Place {
    pub(crate) runtime: tokio::runtime::Runtime,
    /// Folder of sockets and keys.
    pub(crate) run: PathBuf,
    /// Folder of the proxies' logs.
    logs: PathBuf,
}

// === impl Place ===

impl Place {
    pub(crate) fn new(out: &Path, host_pid: u32) -> Result<Self, String> {
        let logs = out.join("ztunnel-logs");
        // Socket paths have to be short, and this process's own id is 1.
        let run = std::env::temp_dir().join(format!("ambit-bench-{host_pid}"));
        for folder in [&logs, &run] {
            fs::create_dir_all(folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        Ok(Self { runtime, run, logs })
    }

    pub(crate) fn director<'a>(&'a self, node: &'a Node, control: &'a ControlPlane) -> Director<'a> {
        Director { node, runtime: &self.runtime, control, run: &self.run, logs: &self.logs }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.run);
    }
}
