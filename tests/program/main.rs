//! The whole program, from outside, as its user sees it: exact output, exit codes, and
//! what is left of the processes.

mod api;
mod daemon;
mod disks;
mod environment;
mod faults;
mod groups;
mod harness;
mod identity;
mod logs;
mod manifest;
mod real;
mod remote;
mod replay;
mod resources;
mod run;
mod shortages;
mod soak;
mod stops;
mod succession;
mod tasks;
mod torture;
