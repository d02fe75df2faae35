//! The end: what is open ends in peace, unless it is asked for twice.

use rustix::process::Signal;

use crate::{
    mesh::VIP,
    world::{World, receive, send, soon},
};

const SLOW: &str = "GET /slow";

#[tokio::test]
async fn an_open_request_ends_without_an_error_and_late_clients_are_served() {
    let world = World::new().await;
    world.control.change([crate::mesh::policy_of("multiple-rules.yaml")]);
    let mut process = world.serve(&[("CONNECTION_TERMINATION_DEADLINE", "20s".to_owned())]).await;
    world.until_status("kagenti-ui", "GET /", 200).await;
    let mut tunnel = world.tunnel(&world.pool(), "kagenti-ui", VIP).await.expect("a tunnel");
    let before = *world.app.asked.borrow();
    send(&mut tunnel, SLOW).await.expect("sent");
    soon(world.app.asked.clone().wait_for(|asked| *asked > before)).await.expect("the server has it");
    process.signal(Signal::TERM);
    process.until("draining").await;
    assert_eq!(world.status("kagenti-ui", "GET /").await, 200, "who hasn't heard of it yet is served");
    process.logged("draining").await;
    world.app.released.send_replace(true);
    assert_eq!(soon(receive(&mut tunnel)).await.expect("an answer"), (200, "ok".to_owned()));
    drop(tunnel);
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.log());
    assert!(process.log().contains("shutdown complete"), "{}", process.log());
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_at_the_deadline() {
    let world = World::new().await;
    world.control.change([crate::mesh::policy_of("multiple-rules.yaml")]);
    let mut process = world.serve(&[("CONNECTION_TERMINATION_DEADLINE", "1s".to_owned())]).await;
    world.until_status("kagenti-ui", "GET /", 200).await;
    let mut tunnel = world.tunnel(&world.pool(), "kagenti-ui", VIP).await.expect("a tunnel");
    send(&mut tunnel, SLOW).await.expect("sent");
    process.signal(Signal::TERM);
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.log());
    assert!(soon(receive(&mut tunnel)).await.is_err(), "there is no answer");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let world = World::new().await;
    world.control.change([crate::mesh::policy_of("multiple-rules.yaml")]);
    let mut process = world.serve(&[("CONNECTION_TERMINATION_DEADLINE", "1h".to_owned())]).await;
    world.until_status("kagenti-ui", "GET /", 200).await;
    let mut tunnel = world.tunnel(&world.pool(), "kagenti-ui", VIP).await.expect("a tunnel");
    send(&mut tunnel, SLOW).await.expect("sent");
    process.signal(Signal::TERM);
    process.until("draining").await;
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code(), Some(143));
}
