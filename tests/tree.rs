//! The tree of actors in paused time, without real processes: over a fake host, and over a runner of
//! things that are no processes at all.

#![expect(clippy::duplicate_mod, reason = "the same cases run over both")]

#[path = "support/fake.rs"]
mod fake;

#[path = "tree/on_a_host.rs"]
mod on_a_host;
#[path = "tree/on_a_runner.rs"]
mod on_a_runner;
