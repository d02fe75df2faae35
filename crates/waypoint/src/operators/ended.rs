//! What is said of a request or connection once it has ended: to the text log, and as a span. Nothing of this exists where
//! neither is asked for.

use std::{sync::Arc, time::Instant};

use ambit_mesh::view::Tracing;
use ambit_telemetry::{
    DecisionRecord, Exchange, Recorder,
    trace::{SpanPlace, span},
};

use super::Spans;

/// Says it when dropped.
#[derive(Debug)]
pub(crate) struct Ended {
    record: DecisionRecord,
    exchange: Option<Box<Exchange>>,
    recorder: Recorder,
    started: Instant,
    traced: Option<Box<Traced>>,
}

/// A request whose span is wanted.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) tracing: Arc<Tracing>,
    pub(crate) place: SpanPlace,
    pub(crate) spans: Arc<Spans>,
}

// === impl Ended ===

impl Ended {
    pub(crate) fn new(
        record: DecisionRecord,
        exchange: Box<Exchange>,
        recorder: Recorder,
        started: Instant,
        traced: Option<Box<Traced>>,
    ) -> Self {
        Self { record, exchange: Some(exchange), recorder, started, traced }
    }

    /// What went wrong, in Envoy's word, and the bytes from and to the client.
    pub(crate) fn set(&mut self, flags: &'static str, received_bytes: u64, sent_bytes: u64) {
        if let Some(exchange) = &mut self.exchange {
            exchange.flags = flags;
            self.carried(received_bytes, sent_bytes);
        }
    }

    /// The bytes from and to the client.
    pub(crate) fn carried(&mut self, received_bytes: u64, sent_bytes: u64) {
        if let Some(exchange) = &mut self.exchange {
            (exchange.received_bytes, exchange.sent_bytes) = (received_bytes, sent_bytes);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let Some(mut exchange) = self.exchange.take() else { return };
        exchange.duration = self.started.elapsed();
        if let Some(traced) = self.traced.take() {
            traced.spans.submit(&traced.tracing, span(&self.record, &exchange, &traced.place));
        }
        if self.recorder.wants_exchanges() {
            let mut record = self.record.clone();
            record.exchange = Some(exchange);
            self.recorder.record(record);
        }
    }
}
