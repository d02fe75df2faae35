//! A storm of changes: none may be lost, and what clients have in the end is what a build from scratch gives.

use std::time::{Duration, Instant};

use ambit_mesh::{Index, derive::derive, inputs::Settings};
use ambit_xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, server::Resources};
use serde_json::{Value, json};

use crate::{
    clients::{Held, Wire, bytes},
    objects::{self, PER_SERVICE},
};

/// Changes are made in this rhythm, as many as are due.
const TICK: Duration = Duration::from_millis(5);

/// Changes at a rate, for so long, with a client.
pub async fn measure(workloads: usize, rate: u32, lasting: Duration) -> Result<Value, String> {
    let mut index = Index::new(Settings::default());
    let deltas = index.apply(objects::mesh(workloads)?);
    let resources = Resources::new();
    resources.apply(&deltas);
    let wire = Wire::serve(&resources).await?;
    let mut listener = wire.listen(0, true)?;
    listener.until(bytes(&deltas)).await?;
    let (start, mut made) = (Instant::now(), 0_usize);
    while start.elapsed() < lasting {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        let mut changes = Vec::new();
        while made < due {
            made += 1;
            // Pods for the most part, all over the mesh; every tenth a policy.
            let place = made.wrapping_mul(7_919) % workloads;
            changes.push(match made % 10 {
                0 => objects::policy(place / PER_SERVICE, &format!("cluster.local/ns/a/sa/s{made}"))?,
                _ => objects::pod(place, (made / workloads + made).is_multiple_of(2)),
            });
        }
        let deltas = index.apply(changes);
        resources.apply(&deltas);
        tokio::time::sleep(TICK).await;
    }
    let lasted = start.elapsed();
    let told = |kind: &str| kind == ADDRESS_TYPE || kind == AUTHORIZATION_TYPE;
    let fresh = derive(index.inputs()).into_iter().filter(|((kind, _), _)| told(kind));
    let wanted: Held =
        fresh.map(|((kind, name), resource)| ((kind.to_owned(), name), resource.value.to_vec())).collect();
    let behind = listener.until_equal(&wanted).await;
    Ok(json!({
        "changes": made, "seconds": lasted.as_secs_f64(), "lost": behind.is_none(),
        "behind_ms": behind.map(|behind| behind.as_secs_f64() * 1000.0),
    }))
}
