//! Pure decisions: what should happen, given what happened and what time it is.
//!
//! May use `model` and std. No tokio, ractor, nix, clock, randomness or logging: time is
//! a [`std::time::Duration`] since the supervisor's start, chance is a number from 0 to 1
//! that the caller rolls. So a test writes time down, and a recorded run can be replayed.

pub mod access;
mod budget;
pub mod cache;
pub mod continuation;
pub mod frontier;
pub mod goals;
pub mod graph;
pub mod group;
pub mod growth;
pub mod history;
pub mod ledger;
pub mod lifecycle;
pub mod operation;
pub mod pool;
pub mod probe;
pub mod progress;
pub mod reload;
pub mod resolve;
pub mod restart;
pub mod scaler;
pub mod select;
pub mod status;
pub mod succession;
pub mod tally;
pub mod why;
pub mod window;
pub mod words;
pub mod world;
