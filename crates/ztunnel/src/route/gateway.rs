//! The ways to waypoints and through gateways to other networks (`spec/ztunnel.md` 2.8 and 4, rows 4, 6 and 7).

use std::{net::SocketAddr, sync::Arc};

use ambit_mesh::view::{Families, Gateway, GatewayRef, Service, ServiceKey, WaypointRef, Workload};

use super::{Authority, Query, Refusal, Route, Tunnel, Way, expected, host, mesh, waypoint_name};
use crate::balance::Picked;

/// A workload that a [`GatewayRef`] leads to, and the service it was found by.
struct Reached<'v> {
    workload: &'v Arc<Workload>,
    service: Option<&'v Arc<Service>>,
    others: bool,
}

impl Query<'_> {
    /// To a waypoint, of this network or another. Without it there is no way.
    pub(super) fn to_waypoint(
        self,
        waypoint: &WaypointRef,
        of: &str,
        service: Option<&Arc<Service>>,
        destination: SocketAddr,
    ) -> Result<Route, Refusal> {
        let name = waypoint_name(waypoint);
        let refusal = |reason| Refusal { reason, service: service.cloned() };
        let Some(reached) = self.reach(waypoint, None) else {
            return Err(refusal(format!("waypoint `{name}` of {of} has no ready endpoint")));
        };
        let workload = reached.workload;
        let identities = reached.service.map(|service| service.identities.as_slice()).unwrap_or_default();
        let way = if self.is_remote(workload) {
            let Some((asked, front)) = service.zip(reached.service) else {
                let reason = format!("waypoint `{name}` of {of} is in another network, and no service was asked for");
                return Err(refusal(reason));
            };
            self.across(workload, asked, front, destination.port()).map_err(refusal)?
        } else {
            let families = reached.service.map_or(Families::Any, |service| service.families);
            Way::Hbone(Tunnel {
                peer: host(workload, destination.ip(), families, waypoint.hbone_port).map_err(refusal)?,
                expected: expected(workload, identities),
                authority: Authority::Address(destination),
            })
        };
        Ok(mesh(service, Some(waypoint), workload, way, reached.others))
    }

    /// To a workload of another network, through its gateway, for a service and one of its ports. `front` is the
    /// service that the workload belongs to: only whom it names is believed to be at the far end.
    pub(super) fn across(
        &self,
        workload: &Workload,
        asked: &Service,
        front: &Service,
        port: u16,
    ) -> Result<Way, String> {
        let name = format!("`{}/{}` in network `{}`", workload.namespace, workload.name, workload.network);
        if !self.source.captured {
            return Err(format!("{name} can be reached from pods of the mesh only"));
        }
        let gateway = workload.network_gateway.as_ref();
        let gateway = gateway.ok_or_else(|| format!("no valid routing destination: {name} has no network gateway"))?;
        if front.identities.is_empty() {
            let front = format!("{}/{}", front.key.namespace, front.name);
            return Err(format!(
                "service `{front}` names no subject alternative names, so nobody behind the gateway to {name} could be \
                 believed"
            ));
        }
        let at = waypoint_name(gateway);
        let reached = self.reach(gateway, Some(gateway.hbone_port));
        let reached = reached.ok_or_else(|| format!("the network gateway `{at}` of {name} has no ready endpoint"))?;
        let identities = reached.service.map(|service| service.identities.as_slice()).unwrap_or_default();
        let target = reached.service.and_then(|service| reached.workload.target_port(service, gateway.hbone_port));
        let asked_for = match &gateway.destination {
            Gateway::Address(address) => address.ip,
            Gateway::Service(_) => self.source.ip,
        };
        let outer = Tunnel {
            peer: host(reached.workload, asked_for, Families::Any, target.unwrap_or(gateway.hbone_port))?,
            expected: expected(reached.workload, identities),
            authority: Authority::Name(Arc::clone(&asked.key.hostname), port),
        };
        Ok(Way::Double { gateway: outer, inner: front.identities.clone() })
    }

    /// One of the workloads that a reference leads to; with this port, if one is given.
    fn reach(&self, gateway: &GatewayRef, port: Option<u16>) -> Option<Reached<'_>> {
        match &gateway.destination {
            Gateway::Service(key) => self.endpoint(key, port).or_else(|| {
                let mut named = self.view.workloads_by_hostname(&key.hostname);
                let workload = named.find(|workload| workload.namespace == key.namespace && is_ready(workload))?;
                Some(Reached { workload, service: None, others: false })
            }),
            Gateway::Address(address) => {
                let workload = self.view.workload_by_address(address).filter(|workload| is_ready(workload));
                match workload {
                    Some(workload) => Some(Reached { workload, service: None, others: false }),
                    None => self.endpoint(&self.view.service_by_address(address)?.key, port),
                }
            }
        }
    }

    fn endpoint(&self, key: &ServiceKey, port: Option<u16>) -> Option<Reached<'_>> {
        let service = self.view.service(key).filter(|service| service.rejected.is_none())?;
        let Picked { workload, others, .. } = self.choice.pick(&self.view.tiers(key, self.source.workload, port))?;
        Some(Reached { workload, service: Some(service), others })
    }
}

fn is_ready(workload: &Workload) -> bool {
    workload.healthy && workload.rejected.is_none()
}
