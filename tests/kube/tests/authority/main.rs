//! The control plane's authority against a real API server: tokens that it issues and reviews, the root in a Secret that
//! replicas race for, ConfigMaps that are put right, and a Lease that goes from one replica to the next.
#![forbid(unsafe_code)]

mod cluster;
mod config_maps;
mod leaders;
mod roots;
mod tokens;

use ambit_tests_kube::programs_or_skip;

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_holds_on_a_real_api_server() {
    let Some(programs) = programs_or_skip() else { return };
    let mut cluster = Cluster::start(&programs).await;
    tokens::only_what_is_due_is_signed(&cluster).await;
    roots::replicas_share_one_root(&cluster).await;
    roots::one_root_follows_another(&cluster).await;
    roots::a_plugged_in_ca_is_reloaded(&cluster).await;
    config_maps::every_namespace_has_the_bundle(&cluster).await;
    leaders::one_leads_at_a_time(&cluster).await;
    // Last: it takes the server away.
    leaders::nobody_leads_without_an_api_server(&mut cluster).await;
}
