//! Sinks of events and output.

pub mod output;
pub mod recording;
#[cfg(feature = "store")]
pub mod store;
