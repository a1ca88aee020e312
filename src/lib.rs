//! regrow
pub mod actors;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "control")]
pub mod control;
pub mod decide;
pub mod manifest;
pub mod model;
pub mod os;
pub mod record;
pub mod runtime;
