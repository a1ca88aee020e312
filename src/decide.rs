//! Pure decisions: what should happen, given what happened and what time it is.
//!
//! It may use `model`, std and libraries that only compute. Deliberately absent are tokio, ractor,
//! nix, clocks, randomness and logging: time is a [`std::time::Duration`] since the supervisor's
//! start, and chance is a number from 0 to 1 that the caller rolls. So a test states the time, and
//! a recorded run can be replayed.

pub mod access;
mod budget;
pub mod cache;
pub mod goals;
pub mod graph;
pub mod group;
pub mod history;
pub mod ledger;
pub mod lifecycle;
pub mod message;
pub mod node;
pub mod operation;
pub mod plan_edit;
pub mod pool;
pub mod probe;
pub mod progress;
pub mod recovery;
pub mod reload;
pub mod resolve;
pub mod restart;
pub mod scaler;
pub mod select;
pub mod simulation;
pub mod start_gate;
pub mod succession;
pub mod task_metrics;
pub mod tree_state;
pub mod why;
pub mod window;
