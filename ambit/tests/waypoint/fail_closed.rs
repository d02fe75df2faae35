//! Without configuration, certificate or Gateway there is no client, and probes hear why.

use ambit_hbone::ConnectError;
use rustix::process::Signal;

use crate::{
    control_plane::TOKEN,
    mesh::{VIP, gateway, gateway_named},
    world::World,
};

async fn nobody_listens(world: &World) {
    let error = world.tunnel(&world.pool(), "otel-collector", VIP).await.expect_err("nobody is served");
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_token_is_no_way_in_and_the_right_one_is_without_a_restart() {
    let world = World::new().await;
    let token = world.control.write("another-token", "wrong");
    let mut process = world.start("waypoint.log", &[("AUTH_TOKEN", token.display().to_string())]);
    let answer = process.until("authentication failure").await;
    assert!(answer.starts_with("not ready, pending: state manager (Unauthenticated"), "{answer}");
    let answer = process.until("doesn't accept our token").await;
    assert!(answer.contains("certificate (") && answer.contains("proxy"), "{answer}");
    assert!(!answer.contains("wrong"), "the token isn't shown: {answer}");
    assert!(!process.log().contains("wrong"), "nor logged: {}", process.log());
    nobody_listens(&world).await;
    world.control.write("another-token", TOKEN);
    process.ready().await;
    assert_eq!(world.status("otel-collector", "POST /v1/traces").await, 200);
}

#[tokio::test]
async fn without_a_control_plane_nobody_is_served_and_the_end_is_quick() {
    let mut world = World::new().await;
    world.control.stop().await;
    let mut process = world.start("waypoint.log", &[]);
    let answer = process.until("can't connect to").await;
    assert!(answer.contains("state manager (can't connect to"), "{answer}");
    assert_eq!(process.stats("/healthz/ready").await.expect("an answer"), "no configuration yet\n");
    nobody_listens(&world).await;
    process.signal(Signal::TERM);
    assert!(process.ended().await.success(), "{}", process.log());
}

#[tokio::test]
async fn a_gateway_that_is_not_there_yet_is_waited_for() {
    let world = World::with(vec![gateway_named("another", true)]).await;
    let mut process = world.start("waypoint.log", &[]);
    let answer = process.until("is there such a Gateway?").await;
    assert!(answer.contains("`kagenti-system/mlflow-waypoint`"), "{answer}");
    nobody_listens(&world).await;
    world.control.change([gateway(true)]);
    process.ready().await;
    assert_eq!(world.status("otel-collector", "POST /v1/traces").await, 200);
    assert_eq!(world.status("intruder", "POST /v1/traces").await, 403);
}

#[tokio::test]
async fn a_gateway_that_goes_away_takes_its_traffic_with_it() {
    let world = World::new().await;
    let mut process = world.serve(&[]).await;
    assert_eq!(world.status("otel-collector", "POST /v1/traces").await, 200);
    world.control.change([gateway(false)]);
    process.until("is there such a Gateway?").await;
    let error = world.tunnel(&world.pool(), "otel-collector", VIP).await.expect_err("nothing is served");
    assert!(error.to_string().contains("503"), "{error}");
    world.control.change([gateway(true)]);
    process.ready().await;
    assert_eq!(world.status("otel-collector", "POST /v1/traces").await, 200);
}
