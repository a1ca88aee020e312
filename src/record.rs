//! Recorders of what happens: the hub of all output, the recording of a run, and the store.

pub mod output;
pub mod recording;
#[cfg(feature = "store")]
pub mod store;
