//! Measurements: the machine as a whole, and each managed tree of processes.
//!
//! The readings come from `/proc` by way of `sys`, and from sysinfo. The last reading is
//! remembered, since rates are differences. Deliberately absent: when to measure, and what follows
//! from a measurement.

pub(crate) mod machine;
pub mod sample;
