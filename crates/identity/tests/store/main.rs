//! The store: one fetch however many ask, renewal in time, and never an expired certificate. No test waits in real time.

mod listing;
mod order;
mod renewal;
mod source;
mod waking;
