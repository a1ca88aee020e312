//! The whole program, from outside, as its user sees it: exact output, exit codes, and
//! what is left of the processes.

mod api;
mod daemon;
mod deaths;
mod diagnostics;
mod disks;
mod documents;
mod environment;
mod groups;
#[path = "../support/harness.rs"]
mod harness;
mod identity;
mod logs;
#[path = "../support/machine.rs"]
mod machine;
mod manifest;
mod processes;
mod real;
mod reloads;
mod remote;
mod replay;
mod resources;
mod rules;
mod run;
mod shortages;
mod soak;
#[path = "../support/sources.rs"]
mod sources;
mod stops;
mod succession;
mod tasks;
mod torture;
mod trees;
