//! The way of a connection whose destination may have to be asked for first.

use std::sync::Arc;

use tokio::time::timeout;

use super::{Call, Failure, source};
use crate::{
    limits::{MAX_DEMANDS_PER_CONNECTION, OPEN_TIMEOUT},
    on_demand::{Lacking, OnDemand},
    route::Route,
};

impl Call<'_> {
    /// The way, once everything is known that it depends on. What can't be found out in time is refused, not passed on.
    pub(super) async fn route_on_demand(&self, on_demand: &OnDemand, seed: u64) -> Result<Route, Failure> {
        let found = timeout(OPEN_TIMEOUT, self.route_asking(on_demand, seed)).await;
        found.unwrap_or_else(|_| Err(Failure::new("what the way depends on couldn't be asked for in time")))
    }

    async fn route_asking(&self, on_demand: &OnDemand, seed: u64) -> Result<Route, Failure> {
        let mut asked: Vec<String> = Vec::new();
        let mut is_there = false;
        loop {
            let view = self.pod.shared.store.load();
            let route = self.route(&view, seed, &[]);
            let own = self.workload.as_deref().or_else(|| self.pod.current(&view).map(|own| &**own));
            let ip = self.destination.ip().to_canonical();
            let lacking = Lacking::of(&view, source(self.pod, own), ip, &route);
            // What was remembered as of no use isn't remembered for longer by being asked for again.
            if let Some(last) = asked.last().filter(|last| is_there && lacking.names().contains(last)) {
                on_demand.is_of_no_use(last);
            }
            let next = lacking.names().iter().find(|name| !asked.contains(name));
            let Some(name) = next.filter(|_| asked.len() < MAX_DEMANDS_PER_CONNECTION) else { return Ok(route) };
            let uid = Arc::clone(&self.pod.pod.uid);
            is_there = on_demand.ask(&uid, name).await.map_err(|error| Failure::new(error.to_string()))?;
            asked.push(name.clone());
        }
    }
}
