//! A CA that hands over to another one and back, over and over, as when a root is replaced: first both roots are given
//! out, then the other one signs, then only its root is given out.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ambit_identity::Ca;
use ambit_node::GATEWAY;
use tokio::net::TcpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::control::{ControlPlane, TRUST_DOMAIN};

/// Beside the control plane, so that it can come and go alone.
const PORT: u16 = 15013;
const NAMES: [&str; 2] = ["one", "other"];

/// The CA that signs now.
pub(crate) struct Authority<'a> {
    control: &'a ControlPlane,
    runtime: &'a tokio::runtime::Runtime,
    folder: PathBuf,
    phase: usize,
    _serving: DropGuard,
}

// === impl Authority ===

impl<'a> Authority<'a> {
    pub(crate) fn start(
        control: &'a ControlPlane,
        runtime: &'a tokio::runtime::Runtime,
        folder: &Path,
    ) -> Result<Self, String> {
        let serving = serve(control, runtime, ca(folder, 0)?)?;
        Ok(Self { control, runtime, folder: folder.to_owned(), phase: 0, _serving: serving })
    }

    /// Takes the next step of the rotation.
    pub(crate) fn rotate(&mut self) -> Result<(), String> {
        self.phase += 1;
        self._serving = serve(self.control, self.runtime, ca(&self.folder, self.phase)?)?;
        Ok(())
    }

    /// Steps taken.
    pub(crate) fn rotations(&self) -> usize {
        self.phase
    }

    pub(crate) fn address() -> String {
        format!("https://{GATEWAY}:{PORT}")
    }
}

/// Of each three steps: alone, with the next one's root, and the next one with the old one's root.
fn ca(folder: &Path, phase: usize) -> Result<Ca, String> {
    let open = |turn: usize| {
        let folder = folder.join(NAMES[turn % 2]);
        std::fs::create_dir_all(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
        Ca::open(&folder, TRUST_DOMAIN).map_err(|error| error.to_string())
    };
    let turn = phase / 3;
    Ok(match phase % 3 {
        0 => open(turn)?,
        1 => open(turn)?.trusting(&open(turn + 1)?),
        _ => open(turn + 1)?.trusting(&open(turn)?),
    })
}

/// The listener of the next one is there before that of the last one goes.
fn serve(control: &ControlPlane, runtime: &tokio::runtime::Runtime, ca: Ca) -> Result<DropGuard, String> {
    let gateway: Ipv4Addr = GATEWAY;
    let _inside = runtime.enter();
    let listen = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(SocketAddr::from((gateway, PORT)))?;
        socket.listen(128)
    };
    let listener = listen().map_err(|error| format!("port {PORT}: {error}"))?;
    let stop = CancellationToken::new();
    runtime.spawn(control.authority(ca).serve(listener, stop.clone()));
    Ok(stop.drop_guard())
}
