//! HTTP/2 pings that find a dead peer (`spec/ztunnel.md` 2.4).

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::Limits;

/// Sends a PING some time after the last PONG, and tells when the PONG stays out.
pub(crate) struct KeepAlive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    interval: Duration,
    timeout: Duration,
}

impl KeepAlive {
    pub(crate) fn new(pings: Option<PingPong>, limits: &Limits) -> Self {
        let interval = limits.keepalive_interval;
        let timer = Box::pin(sleep(interval));
        Self { pings, timer, waiting: false, interval, timeout: limits.keepalive_timeout }
    }

    /// Ready when the peer is dead. Makes progress only while the connection is polled too.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.waiting {
                match pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                    }
                    // The connection is ending, and says so itself.
                    Poll::Ready(Err(_)) => {
                        self.pings = None;
                        return Poll::Pending;
                    }
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            } else {
                ready!(self.timer.as_mut().poll(cx));
                if pings.send_ping(Ping::opaque()).is_err() {
                    self.pings = None;
                    return Poll::Pending;
                }
                self.waiting = true;
                self.timer.as_mut().reset(Instant::now() + self.timeout);
            }
        }
    }
}
