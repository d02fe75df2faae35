//! When to ask whether the peer is alive, and when to give it up (`spec/ztunnel.md` 2.4).

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::Limits;

/// The clock of one connection: a PING some time after the last PONG, and the end when the PONG stays out.
pub(crate) struct KeepAlive {
    timer: Pin<Box<Sleep>>,
    phase: Phase,
    made: Instant,
    interval: Duration,
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer has not begun with HTTP/2.
    Silent,
    Alive,
    Asked,
}

/// What it is time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// To send a PING.
    Ping,
    /// To give the peer up: the PONG stayed out.
    Dead,
    /// To give the peer up: it never spoke HTTP/2.
    Silent,
}

impl KeepAlive {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            timer: Box::pin(sleep(limits.handshake_timeout)),
            phase: Phase::Silent,
            made: Instant::now(),
            interval: limits.keepalive_interval,
            timeout: limits.keepalive_timeout,
        }
    }

    /// The peer's settings have come.
    pub(crate) fn begun(&mut self) {
        if self.phase == Phase::Silent {
            self.phase = Phase::Alive;
            self.timer = Box::pin(sleep_until(self.made + self.interval));
        }
    }

    /// A PONG has come.
    pub(crate) fn answered(&mut self) {
        if self.phase == Phase::Asked {
            self.phase = Phase::Alive;
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
    }

    /// Counts down to the end from now on.
    pub(crate) fn linger(&mut self, time: Duration) {
        self.phase = Phase::Asked;
        self.timer.as_mut().reset(Instant::now() + time);
    }

    /// Ready when something is due. After [`Due::Ping`] the time for the PONG runs.
    pub(crate) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<Due> {
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(match self.phase {
            Phase::Silent => Due::Silent,
            Phase::Asked => Due::Dead,
            Phase::Alive => {
                self.phase = Phase::Asked;
                self.timer.as_mut().reset(Instant::now() + self.timeout);
                Due::Ping
            }
        })
    }
}
