//! The pods that a node agent names, served by the node proxy.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ambit_node::zds::{NetworkNamespace, Proxies, WorkloadInfo};
use ambit_ztunnel::{InPod, Pod, Ztunnel};

/// Carries out what the node agent asks.
#[derive(Debug)]
pub struct Serving {
    ztunnel: Arc<Ztunnel>,
    place: Place,
    draining: Arc<AtomicBool>,
}

/// Where this proxy is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: Option<String>,
    /// IPv6 is served too.
    pub ipv6: bool,
}

// === impl Serving ===

impl Serving {
    /// Serves with this proxy. Once it drains, it takes no new pods.
    pub fn new(ztunnel: Arc<Ztunnel>, place: Place, draining: Arc<AtomicBool>) -> Self {
        Self { ztunnel, place, draining }
    }
}

impl Proxies for Serving {
    fn start(&mut self, uid: &str, info: &WorkloadInfo, network: &Arc<NetworkNamespace>) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("this node proxy drains; another one has to serve the pod".to_owned());
        }
        let addresses = network.addresses().map_err(|error| format!("the pod's addresses can't be listed: {error}"))?;
        if let Err(error) = network.keep_waiting_connections() {
            tracing::debug!(uid, %error, "connections that wait at a listener when it closes can't be kept");
        }
        let (network, info) = (Arc::clone(network) as _, info.clone());
        let pod = pod(uid, info, addresses, network, &self.place)?;
        self.ztunnel.add(pod).map_err(|error| error.to_string())?;
        tracing::info!(uid, "pod is served");
        Ok(())
    }

    fn stop(&mut self, uid: &str) {
        self.ztunnel.remove(uid);
        tracing::info!(uid, "pod is no longer served");
    }
}

/// A pod as the node proxy takes it.
///
/// # Errors
/// When the pod has no address yet.
pub fn pod(
    uid: &str,
    info: WorkloadInfo,
    addresses: Vec<IpAddr>,
    network: Arc<dyn ambit_hbone::Network>,
    place: &Place,
) -> Result<Pod, String> {
    // IPv4 first, as where both are there Kubernetes mostly has it first.
    let first = addresses.iter().min_by_key(|ip| ip.is_ipv6());
    let ip = *first.ok_or("the pod has no address yet")?;
    Ok(Pod {
        uid: uid.into(),
        ip,
        namespace: info.namespace,
        network,
        captured: true,
        in_pod: Some(InPod {
            name: info.name,
            service_account: info.service_account,
            cluster: place.cluster.clone(),
            node: place.node.clone(),
            addresses,
            ipv6: place.ipv6,
        }),
    })
}
