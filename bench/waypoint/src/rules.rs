//! What many rules cost: Ambit alone, with few and with many of which the last lets the request in.

use std::time::Duration;

use serde::Serialize;

use crate::{
    contender::{Contender, Stage},
    load::{Load, Pace, drive},
    scenario::{Http, Shape},
};

/// Requests a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Rules {
    pub(crate) few: f64,
    pub(crate) many: f64,
}

pub(crate) const FEW: usize = 10;
pub(crate) const MANY: usize = 10_000;

const LOAD: Load = Load { http: Http::H1, body: 0, concurrency: 64 };

/// Measures both.
pub(crate) async fn measure(stage: &Stage, time: Duration) -> Result<Rules, String> {
    let mut rates = [0.0; 2];
    for (rate, rules) in rates.iter_mut().zip([FEW, MANY]) {
        let proxy = Contender::Ambit.start(stage, Shape::L7, rules)?;
        let outcome = drive(&proxy.way, LOAD, Pace::Saturating, time, proxy.pid()).await?;
        *rate = outcome.rate();
    }
    let [few, many] = rates;
    Ok(Rules { few, many })
}
