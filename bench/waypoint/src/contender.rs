//! A program to measure.

use std::{net::SocketAddr, path::Path, path::PathBuf, sync::Arc};

use ambit_hbone::Pool;
use ambit_identity::CertificateStore;
use serde::Serialize;

use crate::{
    ambit, backend,
    child::Running,
    cores::Cores,
    envoy,
    load::Way,
    scenario::{Policy, Shape, policies},
};

/// Ambit, or an Envoy.
#[derive(Clone, Debug)]
pub(crate) enum Contender {
    Ambit,
    Envoy(PathBuf),
}

/// How tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Name {
    Ambit,
    Envoy,
}

/// What every proxy is started with.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) folder: PathBuf,
    pub(crate) cores: Cores,
    pub(crate) backend: backend::Address,
    pub(crate) certificates: Arc<CertificateStore>,
}

/// One that runs.
pub(crate) struct Proxy {
    pub(crate) running: Running,
    pub(crate) way: Way,
}

/// Rules of the usual scenario.
pub(crate) const RULES: usize = 2;

// === impl Contender ===

impl Contender {
    pub(crate) fn name(&self) -> Name {
        match self {
            Self::Ambit => Name::Ambit,
            Self::Envoy(_) => Name::Envoy,
        }
    }

    /// Starts it on its core.
    pub(crate) fn start(&self, stage: &Stage, shape: Shape, rules: usize) -> Result<Proxy, String> {
        let start = || match self {
            Self::Ambit => ambit::start(&stage.folder, shape, rules, stage.backend),
            Self::Envoy(binary) => envoy(binary, &stage.folder, shape, &policies(rules), stage.backend),
        };
        let (running, address) = stage.cores.on_the_proxys(start)??;
        // A pool of its own, so that no connection to the last proxy is mistaken for one to this.
        let pool = Pool::new(Arc::clone(&stage.certificates), ambit_hbone::Limits::default());
        Ok(Proxy { running, way: Way::new(shape, address, pool) })
    }
}

fn envoy(
    binary: &Path,
    folder: &Path,
    shape: Shape,
    policies: &[Policy],
    backend: backend::Address,
) -> Result<(Running, SocketAddr), String> {
    envoy::Installation { binary, folder }.start(shape, policies, backend)
}

// === impl Proxy ===

impl Proxy {
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }
}
